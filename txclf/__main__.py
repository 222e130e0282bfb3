"""`python -m txclf`: the command line."""

from txclf.cli import main

main()

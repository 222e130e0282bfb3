"""`python -m txclf`: the command line."""

from txclf.cli.main import main

main()

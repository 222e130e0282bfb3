"""Plain lines on standard output and standard error, which any terminal and any encoding can show."""

from __future__ import annotations

import io
import sys

from txclf.core import text


def accept_every_character() -> None:
    """Escape characters that the encoding of the output lacks instead of failing, for example in a log in ASCII."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def out(line: str) -> None:
    """Print a line, or several, on standard output."""
    print(text.message(line), flush=True)


def err(line: str) -> None:
    """Print a line, or several, on standard error."""
    print(text.message(line), file=sys.stderr)

"""Plain lines on standard output and standard error, in any encoding, and which of them a command prints.

Results go to standard output, everything else to standard error. With `--json` standard output has JSON only; with
`--quiet` there are no notes.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import textwrap
from dataclasses import dataclass
from typing import Any, TextIO

from txclf.core import strict_json, text


@dataclass
class Mode:
    """Options of the running command that say what it prints."""

    quiet: bool = False
    """True for results and errors only."""
    verbose: bool = False
    """True for the log of the libraries, tracebacks and times too."""
    as_json: bool = False
    """True if the result is printed as JSON."""


mode = Mode()
NEXT = "next: "
"""Start of a line with a command that can follow."""


def accept_every_character() -> None:
    """Escape characters that the encoding of the output lacks instead of failing, for example in a log in ASCII."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def out(line: str) -> None:
    """Print a line of a result, or several: on standard error if the result is printed as JSON too."""
    if mode.as_json:
        note(line)
    else:
        _print(line, sys.stdout)


def note(line: str) -> None:
    """Print a line about the work on standard error, unless the command is quiet."""
    if not mode.quiet:
        err(line)


def next_steps(*commands: str) -> None:
    """Print commands that can follow, unless the command is quiet."""
    for command in commands if not mode.quiet else ():
        out(f"{NEXT}{command}")


def err(line: str) -> None:
    """Print a line, or several, on standard error."""
    _print(line, sys.stderr)


def _print(content: str, stream: TextIO) -> None:
    """Print lines; on a terminal a sentence that is too wide continues between two words.

    Indented lines and next steps are to be copied, so they stay whole.
    """
    shown = text.message(content).split("\n")
    if stream.isatty():
        width = shutil.get_terminal_size().columns
        split = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False, replace_whitespace=False)
        shown = [
            part
            for line in shown
            for part in ([line] if len(line) <= width or line.startswith((" ", NEXT)) else split.wrap(line))
        ]
    print("\n".join(shown), file=stream, flush=True)


def result(value: Any) -> None:
    """Print a result of plain values as JSON, without NaN and infinity, which JSON lacks."""
    json_lines(json.dumps(strict_json.finite(value), indent=2, ensure_ascii=False) + "\n")


def json_lines(content: str) -> None:
    """Print lines of JSON, in UTF-8 whatever the encoding of the terminal is."""
    sys.stdout.flush()
    sys.stdout.buffer.write(content.encode("utf-8", "replace"))
    sys.stdout.buffer.flush()

"""Progress bars and tables of a terminal; plain lines without a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from txclf.cli import lines
from txclf.core.text import message

WIDTH = 160
"""Width of a table in characters, without a terminal."""

out = Console(highlight=False, soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else WIDTH)
err = Console(highlight=False, stderr=True, soft_wrap=not sys.stderr.isatty())

PLAIN_SECONDS = 10.0
"""Seconds between two lines of progress, without a terminal."""


class Bar:
    """Progress bar on standard error; without a terminal, a line every `PLAIN_SECONDS`."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.rich: Progress | None = None
        self.printed = time.monotonic()
        if err.is_terminal and not lines.mode.quiet:
            self.rich = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                *([TimeElapsedColumn()] if err.width >= 100 else []),
                TimeRemainingColumn(),
                console=err,
                transient=True,
            )
            self.task = self.rich.add_task(title, total=None, note="")

    def __enter__(self) -> Self:
        if self.rich:
            self.rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.rich:
            self.rich.stop()

    def update(self, done: int, total: int | None, note: str = "", title: str | None = None) -> None:
        """Show that `done` of `total` units are done; None if the total is unknown."""
        if self.rich:
            self.rich.update(self.task, completed=done, total=total, note=note, description=title or self.title)
        elif time.monotonic() - self.printed >= PLAIN_SECONDS:
            self.printed = time.monotonic()
            self.line(f"{title or self.title}: {done:,}{'' if total is None else f' of {total:,}'} {note}".rstrip())

    def line(self, text: str) -> None:
        """Print a permanent line above the bar."""
        note(text)


def note(text: str) -> None:
    """Print a line on standard error, above a bar or a live table, unless the command is quiet."""
    if not lines.mode.quiet:
        err.print(message(text), markup=False, emoji=False)


def show(table: Table) -> None:
    """Print a table of results: on standard output, or if that is for JSON, on standard error unless quiet."""
    if not lines.mode.as_json:
        out.print(table)
    elif not lines.mode.quiet:
        err.print(table)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table of results, with the first column left-aligned and the others right-aligned."""
    # `Text` objects, because rich would interpret a label such as `[b]` as markup.
    shown = Table(title=Text(message(title)), title_justify="left", title_style="bold", header_style="")
    for number, column in enumerate(columns):
        shown.add_column(Text(message(column)), justify="right" if number else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(message(cell)) for cell in row))
    show(shown)


def seconds(value: float) -> str:
    """Return a duration as text: `0.4 s`, `12 s`, `3 min 20 s` or `2 h 5 min`."""
    if value < 10:
        return f"{value:.1f} s"
    if value < 120:
        return f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"

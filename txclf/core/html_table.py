"""Small HTML tables, which a notebook shows for results: plain markup, everything escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from txclf.core.text import compact, shown

MAX_ROWS = 20
"""Rows of a table that are shown."""


def table(title: str, rows: Iterable[Sequence[object]], columns: Sequence[str] = ()) -> str:
    """Return a table with a title, at most `MAX_ROWS` rows and, if any are given, names of columns."""
    every = list(rows)
    head = f"<thead><tr>{''.join(f'<th>{_escaped(name)}</th>' for name in columns)}</tr></thead>" if columns else ""
    body = "".join(f"<tr>{''.join(f'<td>{_escaped(cell)}</td>' for cell in row)}</tr>" for row in every[:MAX_ROWS])
    more = f"<p>and {len(every) - MAX_ROWS:,} more</p>" if len(every) > MAX_ROWS else ""
    return f"<div><b>{_escaped(title)}</b><table>{head}<tbody>{body}</tbody></table>{more}</div>"


def _escaped(cell: object) -> str:
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return escape(shown("" if cell is None else cell))
    return compact(cell)

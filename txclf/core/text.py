"""Values from files, names and messages of others as text to show: short, and with hidden characters escaped.

A control character can rewrite a terminal, and a bidirectional one can show a text in another order than it is stored.
Both, and characters that have no shape, are shown as Python writes them: `\\x1b`, `\\u202e`, `\\u200b`.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Collection, Sequence
from itertools import islice
from typing import Any

MAX_CHARS = 100
"""Characters of a value that are shown."""
MAX_VALUES = 10
"""Values of a list that are shown."""
MAX_LINE_CHARS = 1_000
"""Characters of a line of a message."""
MAX_LINES = 100
"""Lines of a message."""


def shown(value: object, max_chars: int = MAX_CHARS) -> str:
    """Return a value as a short text on one line: its beginning and its end, with hidden characters escaped."""
    return _line(str(value), max_chars)


def number(value: Any) -> str:
    """Format a number for a table; other values are returned as text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4f}" if value == 0 or abs(value) >= 1e-3 else f"{value:.3g}"


def compact(value: float) -> str:
    """Format a number of any size with four digits, or all of those before the point."""
    return f"{value:,.0f}" if isinstance(value, int) or 1000 <= abs(value) < math.inf else f"{value:.4g}"


def distinct(values: Sequence[object]) -> list[str]:
    """Return values as short texts, with their numbers if two texts would be the same."""
    texts = list(map(shown, values))
    return texts if len(set(texts)) == len(texts) else [f"{text} ({number})" for number, text in enumerate(texts)]


def listed(values: Collection[object], mark: str = "`") -> str:
    """Return the first values of a collection, each between two marks, and the number of the others."""
    first = ", ".join(f"{mark}{shown(value)}{mark}" for value in islice(values, MAX_VALUES))
    return first + (f" and {len(values) - MAX_VALUES:,} more" if len(values) > MAX_VALUES else "")


def nearest(name: object, known: Collection[str]) -> str:
    """Return `Did you mean …? ` with the known name closest to one, and an empty text if none is close."""
    import difflib

    near = difflib.get_close_matches(str(name), known, n=1)
    return f"Did you mean `{shown(near[0])}`? " if near else ""


def message(text: str) -> str:
    """Return at most `MAX_LINES` lines of at most `MAX_LINE_CHARS` characters, with hidden characters escaped."""
    lines = text.split("\n")
    if len(lines) > MAX_LINES:
        left_out = f"… ({len(lines) - MAX_LINES + 1:,} more lines)"
        lines = [*lines[: MAX_LINES - 4], left_out, *lines[-3:]]
    return "\n".join(_line(line, MAX_LINE_CHARS) for line in lines)


def _line(text: str, max_chars: int) -> str:
    return _shortened(escaped(_shortened(text, max_chars)), max_chars)


def escaped(text: str, kept: str = "") -> str:
    """Return a text with all characters escaped that have no shape, other than spaces and the `kept` ones."""
    if text.isprintable():
        return text
    return "".join(
        character if _is_visible(character) or character in kept else _escape(character) for character in text
    )


def _is_visible(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _shortened(text: str, max_chars: int) -> str:
    """Return the beginning and the end of a long text."""
    if len(text) <= max_chars:
        return text
    tail = max_chars // 3
    return f"{text[: max_chars - tail - 3]} … {text[len(text) - tail :]}"

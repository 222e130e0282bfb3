"""Raw rows of a file, and the parts that all readers of files share: opening, choosing columns, limits."""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from txclf.core.errors import DataError
from txclf.core.text import listed, nearest, shown
from txclf.data import detect
from txclf.data.sources import Source, open_stream

MAX_CHARS = 2**24
"""Maximum characters of a JSON line, csv record or text file, and bytes of a Parquet value. Longer ones are bad."""
MAX_BATCH_CHARS = 2**23
"""Characters, or bytes of Parquet, after which a batch ends early. It bounds the memory of a batch of long rows."""
NUMBER_CHARS = 8
"""Characters that a number counts as."""
INVALID_BYTES = "txclf.invalid_bytes"
"""Error handler of decoders that turns invalid bytes into lone surrogates, as `surrogateescape` does for some."""


def _as_surrogates(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "".join(chr(0xDC00 + byte) for byte in error.object[error.start : error.end]), error.end


codecs.register_error(INVALID_BYTES, _as_surrogates)


def codec(encoding: str) -> str:
    """Return the decoder of an encoding; that of UTF-8 skips a byte order mark."""
    return "utf-8-sig" if detect.is_utf8(encoding) else encoding


@dataclass(frozen=True, slots=True)
class RawBatch:
    """Consecutive rows of a source, with the values of the file."""

    source: Source
    rows: list[int]
    files: list[str]
    columns: dict[str, list[Any]]
    """Python values by column, one per row; all None in a row with a problem."""
    problems: dict[int, str]
    """Reasons why rows cannot be read, by position in the batch."""
    schema: pa.Schema | None = None
    """Schema of the columns; None unless the file is Parquet."""


def make_batch(
    source: Source,
    done: int,
    count: int,
    columns: dict[str, list[Any]],
    problems: dict[int, str],
    *,
    schema: pa.Schema | None = None,
) -> RawBatch:
    """Return the batch of `count` rows after `done` rows of a file, with None in all columns of rows with a problem."""
    for values in columns.values():
        for i in problems:
            values[i] = None
    return RawBatch(source, list(range(done + 1, done + count + 1)), [source.path] * count, columns, problems, schema)


def choose(source: Source, names: list[str], wanted: list[str] | None) -> list[str]:
    """Return the columns to read. Raises `DataError` for one of them that is missing or that the header names twice."""
    counts = Counter(names)
    for name in names if wanted is None else wanted:
        if counts[name] > 1:
            raise DataError(f"`{source.path}`: column `{shown(name)}` comes twice in the header. Rename one of them.")
        if not counts[name]:
            advice = (
                detect.advice(source)
                or "Set `data.text` or `data.label` to a column of the file; for a trained run, rename the column."
            )
            near = nearest(name, names)
            raise DataError(f"`{source.path}`: no column `{shown(name)}` among {listed(names)}. {near}{advice}")
    return names if wanted is None else wanted


def column_names(header: Sequence[str]) -> list[str]:
    """Return the names of the columns. A column without a name is called `column_<position>`, from 1."""
    names, taken = list(header), set(header)
    for position, name in enumerate(header, 1):
        if not name.strip():
            new = f"column_{position}"
            while new in taken:
                new += "_"
            names[position - 1] = new
            taken.add(new)
    return names


def num_chars(value: Any) -> int:
    """Return the characters of a value, or the bytes; of a list or an object, those of all in it."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        value = [*value, *value.values()]
    return sum(map(num_chars, value)) if isinstance(value, list | tuple) else NUMBER_CHARS


def read_whole(path: str, max_bytes: int) -> bytes | None:
    """Return the decompressed content of a file, or None if it has more than `max_bytes` bytes."""
    with open_stream(path) as stream:
        content = bytes(stream.read(max_bytes + 1))
    return content if len(content) <= max_bytes else None


@contextmanager
def damage(source: Source, done: int, taken: Sequence[Any] = ()) -> Iterator[None]:
    """Turn errors of reading a file into a `DataError` with its last good row: `done`, and those in `taken`."""
    try:
        yield
    except (OSError, EOFError, pa.ArrowException) as error:
        raise DataError(
            f"`{source.path}`: damaged after row {done + len(taken):,}: {error}. Copy the file again."
        ) from error

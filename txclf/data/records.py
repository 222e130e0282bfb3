"""Labelled files, read row by row with one batch in memory.

    Source ──read_raw──▶ RawBatch ──read_rows──▶ (Rows, rejects)

1. `read_raw` reads the values of a file. A row that cannot be read keeps its position and has a reason.
2. `read_rows` keeps the rows with a text and a label and rejects the others: rows read = kept + rejected.

Rows are numbered from 1 in their file. A header and blank lines do not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from txclf.core.errors import DataError
from txclf.core.text import listed, shown
from txclf.data import labels as cells
from txclf.data.parquet_files import read_parquet
from txclf.data.raw import RawBatch as RawBatch
from txclf.data.sources import Source, unchanged
from txclf.data.text_files import read_csv, read_folder, read_jsonl


class Reject(NamedTuple):
    """Row that is left out, with the reason."""

    file: str
    row: int
    reason: str


@dataclass(frozen=True, slots=True)
class Rows:
    """Usable rows of a batch. All lists that are not empty have one item per row."""

    texts: list[tuple[str, ...]]
    """One item per text column."""
    labels: list[str]
    """One label, or target, per row; empty if no label column is read or rows have sets of labels."""
    label_sets: list[tuple[str, ...]]
    """Sorted distinct labels of each row; empty unless rows have sets of labels."""
    rows: list[int]
    files: list[str]
    label_kinds: set[str]
    """Types of the labels in the file: `string`, `integer`, `boolean`, `float` for whole numbers, `fraction`."""


def read_raw(source: Source, columns: Sequence[str] | None = None, batch_rows: int = 2048) -> Iterator[RawBatch]:
    """Yield the rows of a source in batches of at most `batch_rows` rows, with the given columns or, for None, all.

    `csv` has a header and may have quotes. `tsv` has a header; a quote is an ordinary character unless it begins the
    header. `jsonl` has an object per line; a missing key gives None. A compressed parquet file is decompressed as a
    whole, so it needs more memory than a batch. An empty file has no rows. `raw` and `parquet_files` have the limits.

    Raises `DataError` for a file that is missing, damaged, of another format or changed while it is read, for a missing
    column, and for csv quotes that enclose rows. For `jsonl`, a column is missing if no row of the first batch has it.
    """
    readers = {"jsonl": read_jsonl, "parquet": read_parquet, "text": read_folder}
    wanted = None if columns is None else list(dict.fromkeys(columns))
    with unchanged([source]) as before:
        is_empty = source.format != "text" and before[0][0][1] == 0
        if not is_empty:
            yield from readers.get(source.format, read_csv)(source, wanted, batch_rows)


def require_one_text(source: Source, text_columns: Sequence[str]) -> None:
    """Raise `DataError` if several texts per row are wanted of a folder of text files."""
    if source.format == "text" and len(text_columns) > 1:
        raise DataError(
            f"`{source.path}`: a folder of text files has one text per row, but {len(text_columns)} are read "
            f"({listed(text_columns, '')}). Pass a csv, jsonl or Parquet file with these columns."
        )


def read_rows(
    source: Source,
    text_columns: Sequence[str],
    label_column: str | None,
    batch_rows: int = 2048,
    label_delimiter: str | None = None,
) -> Iterator[tuple[Rows, list[Reject]]]:
    """Yield the usable rows of each batch and the rejected rows. Labels become strings: 3 and 3.0 are `3`.

    A `ClassLabel` of Hugging Face Datasets has the names that the Parquet file holds of it; -1 is no label. With
    `label_delimiter`, a row has any number of labels: a list, or a string that is split at the delimiter. A folder
    of text files has its own columns, whatever columns are given. Raises `DataError` as `read_raw` does.
    """
    if source.format == "text":
        require_one_text(source, text_columns)
        text_columns, label_column = ["text"], label_column and "label"
    wanted = [*text_columns, *([] if label_column is None else [label_column])]
    for raw in read_raw(source, wanted, batch_rows):
        reasons: dict[int, str] = {}
        kinds: set[str] = set()
        labels: list[str] = []
        sets: list[tuple[str, ...]] = []
        names = None if label_column is None else cells.class_names(raw.schema, label_column)
        if label_column is not None and names is not None:
            raw.columns[label_column] = cells.named(raw.columns[label_column], names)
        if label_column is not None and label_delimiter is not None:
            sets = cells.label_sets(raw.columns[label_column], label_column, label_delimiter, kinds, reasons)
        elif label_column is not None:
            labels = cells.single(raw.columns[label_column], label_column, kinds, reasons)
        texts = _texts([raw.columns[name] for name in text_columns], text_columns, reasons)
        reasons |= raw.problems
        rejects = [Reject(raw.files[i], raw.rows[i], reasons[i]) for i in sorted(reasons)]
        rows, files = raw.rows, raw.files
        if rejects:
            kept = [i for i in range(len(rows)) if i not in reasons]
            texts, rows, files = [texts[i] for i in kept], [rows[i] for i in kept], [files[i] for i in kept]
            labels, sets = [labels[i] for i in kept if labels], [sets[i] for i in kept if sets]
        yield Rows(texts, labels, sets, rows, files, kinds), rejects


def _texts(columns: list[list[Any]], names: Sequence[str], reasons: dict[int, str]) -> list[tuple[str, ...]]:
    rows = list(zip(*columns, strict=True))
    if all(set(map(type, values)) == {str} and all(map(str.strip, values)) for values in columns):
        return rows
    for i, row in enumerate(rows):
        invalid = [(name, value) for name, value in zip(names, row, strict=True) if not isinstance(value, str | None)]
        if invalid:
            reasons[i] = f"`{shown(invalid[0][0])}` is of type {type(invalid[0][1]).__name__}, expected a string"
        elif not any(value and value.strip() for value in row):
            reasons[i] = f"no text: {' and '.join(f'`{shown(name)}`' for name in names)} missing or blank"
        elif None in row:
            rows[i] = tuple(value or "" for value in row)
    return rows


def sort_labels(labels: Iterable[str]) -> list[str]:
    """Return the distinct labels, in numeric order if all are integers, otherwise in text order."""
    distinct = sorted(set(labels))
    if all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in distinct):
        distinct.sort(key=int)
    return distinct

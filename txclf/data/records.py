"""Labelled files, read row by row with one batch in memory.

    Source ──read_raw──▶ RawBatch ──read_rows──▶ (Rows, rejects)

1. `read_raw` reads the values of a file. A row that cannot be read keeps its position and has a reason.
2. `read_rows` keeps the rows with a text and a label and rejects the others: rows read = kept + rejected.

Rows are numbered from 1 in their file. A header and blank lines do not count.
"""

from __future__ import annotations

import csv
import io
import json
import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, filterfalse, islice
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from txclf.core import storage
from txclf.core.errors import DataError
from txclf.data import labels as cells
from txclf.data.sources import Source, distinct, ending, fault, list_files, public_name

MAX_CHARS = 2**24
"""Maximum characters of a JSON line or csv field. It keeps a quote that is never closed from filling the memory."""

_NOT_UTF8 = "not valid UTF-8"


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
    """Types of the labels in the file: `string`, `integer`, `boolean`, `float`."""


def read_raw(source: Source, columns: Sequence[str] | None = None, batch_rows: int = 2048) -> Iterator[RawBatch]:
    """Yield the rows of a source in batches of at most `batch_rows` rows, with the given columns or, for None, all.

    `csv` has a header and may have quotes. `tsv` has a header; a quote is an ordinary character unless it begins the
    header. `jsonl` has an object per line; a missing key gives None. A compressed parquet file is decompressed as a
    whole, so it needs more memory than a batch.

    Raises `DataError` for a file that is missing, empty, damaged or of another format, and for a missing column. For
    `jsonl`, a column is missing if no row of the first batch has it.
    """
    readers = {"jsonl": _read_jsonl, "parquet": _read_parquet, "text": _read_texts}
    wanted = None if columns is None else list(dict.fromkeys(columns))
    return readers.get(source.format, _read_csv)(source, wanted, batch_rows)


def _read_csv(source: Source, wanted: list[str] | None, batch_rows: int) -> Iterator[RawBatch]:
    is_tsv = source.format == "tsv"
    with _lines(source, newline="") as lines:
        head = _take(source, lines, 1, 0)
        dialect: dict[str, Any] = {"strict": True, "delimiter": "\t" if is_tsv else ","}
        if is_tsv and not "".join(head).startswith('"'):
            dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
        reader = csv.reader(chain(head, lines), **dialect)
        records = filter(None, _records(reader))
        header = _take_csv(source, records, 1, 0)
        if not header:
            raise DataError(f"`{source.path}`: is empty. Name a file with rows.")
        names = header[0]
        if isinstance(names, str) or _not_utf8(names):
            raise DataError(f"`{source.path}`: header line: {names if isinstance(names, str) else _NOT_UTF8}")
        chosen = _choose(source, names, wanted)
        done, width = 0, len(names)
        while batch := _take_csv(source, records, batch_rows, done):
            problems = {
                i: record if isinstance(record, str) else f"expected {width} fields, found {len(record)}"
                for i, record in enumerate(batch)
                if len(record) != width or isinstance(record, str)
            }
            for i in problems:
                batch[i] = [None] * width
            by_name = dict(zip(names, map(list, zip(*batch, strict=True)), strict=True))
            columns = {name: by_name[name] for name in chosen}
            for values in columns.values():
                problems |= dict.fromkeys(_not_utf8(values), _NOT_UTF8)
            yield _batch(source, done, len(batch), columns, problems)
            done += len(batch)


def _records(reader: Any) -> Iterator[Any]:
    """Yield the records of a csv reader, and for a malformed record the reason."""
    while True:
        try:
            yield from reader
            return
        except csv.Error as error:
            if "unexpected end" in str(error):
                yield f"a quoted field is never closed and runs to the end of the file, line {reader.line_num:,}"
            elif "limit" in str(error):
                limit = f"a field of over {MAX_CHARS:,} characters"
                yield f"line {reader.line_num:,}: {limit}, maybe a quote that is never closed"
            else:
                yield f"line {reader.line_num:,}: malformed csv: {error}"


_csv_lock = threading.Lock()


def _take_csv(source: Source, records: Iterator[Any], count: int, done: int) -> list[Any]:
    # The limit of the csv module is global: it is raised for one batch and then restored.
    with _csv_lock:
        before = csv.field_size_limit(MAX_CHARS)
        try:
            return _take(source, records, count, done)
        finally:
            csv.field_size_limit(before)


def _read_jsonl(source: Source, wanted: list[str] | None, batch_rows: int) -> Iterator[RawBatch]:
    done = 0
    with _lines(source, newline="\n") as lines:
        filled = filterfalse(str.isspace, iter(partial(lines.readline, MAX_CHARS), ""))
        objects = map(_json_object, filled)
        while batch := _take(source, objects, batch_rows, done):
            problems = {i: reason for i, reason in enumerate(batch) if isinstance(reason, str)}
            for i in problems:
                batch[i] = {}
            names = dict.fromkeys(chain.from_iterable(batch))
            if done == 0 and len(problems) < len(batch):
                _choose(source, list(names), wanted)
            columns = {name: [row.get(name) for row in batch] for name in (names if wanted is None else wanted)}
            yield _batch(source, done, len(batch), columns, problems)
            done += len(batch)
    if done == 0:
        raise DataError(f"`{source.path}`: is empty. Name a file with rows.")


_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_decode_json = json.JSONDecoder().decode


def _json_object(line: str) -> Any:
    """Return the object of a line, or a reason (a string) if the line is no JSON object."""
    if len(line) >= MAX_CHARS:
        return f"a line of over {MAX_CHARS:,} characters"
    try:
        if not line.isascii():
            line.encode()
        value = _decode_json(line)
        if _SURROGATE_ESCAPE.search(line):  # Python accepts half a surrogate pair, but it cannot be encoded
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return _NOT_UTF8
    except json.JSONDecodeError as error:
        return f"not valid JSON: {error.msg} at character {error.pos + 1:,}"
    except (ValueError, RecursionError) as error:
        return f"not valid JSON: {error}"
    return value if isinstance(value, dict) else f"JSON of type {type(value).__name__}, expected an object"


def _read_parquet(source: Source, wanted: list[str] | None, batch_rows: int) -> Iterator[RawBatch]:
    with fault(source.path, "cannot be read as parquet"):
        filesystem, inner = storage.resolve(source.path)
        packed = ending(inner)[1] is not None
        stream = pa.BufferReader(_read_whole(source.path)) if packed else filesystem.open_input_file(inner)
        file = pq.ParquetFile(stream)
        names = file.schema_arrow.names
    with file:
        chosen = _choose(source, names, wanted)
        tables = file.iter_batches(batch_rows, columns=chosen)
        done = 0
        while taken := _take(source, tables, 1, done):
            table, problems = taken[0], dict[int, str]()
            columns = {name: _pylist(table.column(name), name, problems) for name in chosen}
            yield _batch(source, done, table.num_rows, columns, problems, schema=table.schema)
            done += table.num_rows


def _pylist(column: pa.Array, name: str, problems: dict[int, str]) -> list[Any]:
    """Return Python values. A value that Python cannot represent, such as a date before the year 1, is a problem."""
    if isinstance(column, pa.DictionaryArray):
        column = column.dictionary_decode()
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError):
        values: list[Any] = [None] * len(column)
    for i, scalar in enumerate(column):
        try:
            values[i] = scalar.as_py()
        except UnicodeDecodeError:
            problems[i] = _NOT_UTF8
        except (ValueError, OverflowError) as error:
            problems[i] = f"`{name}`: {error}"
    return values


def _read_texts(source: Source, wanted: list[str] | None, batch_rows: int) -> Iterator[RawBatch]:
    chosen = _choose(source, ["text", "label"], wanted)
    filesystem, inner = storage.resolve(source.path)
    with fault(source.path, "cannot be listed"):
        files = [info for info in list_files(filesystem, inner) if info.type == pafs.FileType.File]
        infos = distinct(filesystem, files)
    paths = [info.path for info in infos if info.base_name[0] not in "._" and ending(info.path)[0] == "text"]
    if not paths:
        raise DataError(f"`{source.path}`: holds no text files `<file>.txt`. Add some, or name another folder.")
    for start in range(0, len(paths), batch_rows):
        files = [public_name(source.path, inner, path) for path in paths[start : start + batch_rows]]
        texts: list[str | None] = [None] * len(files)
        problems: dict[int, str] = {}
        for i, file in enumerate(files):
            try:
                texts[i] = _read_whole(file).decode("utf-8-sig")
            except UnicodeDecodeError:
                problems[i] = _NOT_UTF8
            except OSError as error:
                problems[i] = f"cannot be read: {error}"
        every = {"text": texts, "label": [source.label] * len(files)}
        batch = _batch(source, 0, len(files), {name: every[name] for name in chosen}, problems)
        yield replace(batch, rows=[1] * len(files), files=files)


def _open(path: str) -> pa.NativeFile:
    filesystem, inner = storage.resolve(path)
    return filesystem.open_input_stream(inner, compression=ending(inner)[1])


def _read_whole(path: str) -> bytes:
    with _open(path) as stream:
        return bytes(stream.read())


@contextmanager
def _lines(source: Source, newline: str) -> Iterator[io.TextIOWrapper]:
    """Open a text file for reading lines. Invalid UTF-8 becomes lone surrogates, which `_not_utf8` finds by row."""
    with fault(source.path, "cannot be read"):
        buffer = io.BufferedReader(_open(source.path), 2**17)
    with io.TextIOWrapper(buffer, encoding="utf-8-sig", errors="surrogateescape", newline=newline) as stream:
        yield stream


def _take(source: Source, items: Iterator[Any], count: int, done: int) -> list[Any]:
    """Return the next `count` items, fewer at the end. Raises `DataError` with the last good row of a damaged file."""
    taken: list[Any] = []
    try:
        taken.extend(islice(items, count))  # unlike list(), keeps the items before an error
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"`{source.path}`: damaged after row {done + len(taken):,}: {error}. Copy the file again."
        ) from error
    return taken


def _choose(source: Source, names: list[str], wanted: list[str] | None) -> list[str]:
    """Return the columns to read. Raises `DataError` for a missing column, or one that the header names twice."""
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"`{source.path}`: column `{repeated[0]}` comes twice in the header. Rename one of them.")
    for name in names if wanted is None else wanted:
        if name not in names:
            known = ", ".join(f"`{name}`" for name in names)
            advice = "Set `data.text` or `data.label` to a column of the file."
            raise DataError(f"`{source.path}`: no column `{name}` among {known}. {advice}")
    return names if wanted is None else wanted


def _not_utf8(values: Sequence[str | None]) -> list[int]:
    """Return the positions of strings with lone surrogates. If there are none, it takes a single fast pass."""
    try:
        "".join(filter(None, values)).encode()
    except UnicodeEncodeError:
        return [i for i, value in enumerate(values) if value and re.search("[\ud800-\udfff]", value)]
    return []


def _batch(
    source: Source,
    done: int,
    count: int,
    columns: dict[str, list[Any]],
    problems: dict[int, str],
    *,
    schema: pa.Schema | None = None,
) -> RawBatch:
    for values in columns.values():
        for i in problems:
            values[i] = None
    return RawBatch(source, list(range(done + 1, done + count + 1)), [source.path] * count, columns, problems, schema)


def read_rows(
    source: Source,
    text_columns: Sequence[str],
    label_column: str | None,
    batch_rows: int = 2048,
    label_delimiter: str | None = None,
) -> Iterator[tuple[Rows, list[Reject]]]:
    """Yield the usable rows of each batch and the rejected rows. Labels become strings: 3 and 3.0 are `3`.

    With `label_delimiter`, a row has any number of labels: a list, or a string that is split at the delimiter. A folder
    of text files has its own columns, whatever columns are given. Raises `DataError` as `read_raw` does.
    """
    if source.format == "text":
        text_columns, label_column = ["text"], label_column and "label"
    wanted = [*text_columns, *([] if label_column is None else [label_column])]
    for raw in read_raw(source, wanted, batch_rows):
        reasons: dict[int, str] = {}
        kinds: set[str] = set()
        labels: list[str] = []
        sets: list[tuple[str, ...]] = []
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
            reasons[i] = f"`{invalid[0][0]}` is of type {type(invalid[0][1]).__name__}, expected a string"
        elif not any(value and value.strip() for value in row):
            reasons[i] = f"no text: {' and '.join(f'`{name}`' for name in names)} missing or blank"
        elif None in row:
            rows[i] = tuple(value or "" for value in row)
    return rows


def sort_labels(labels: Iterable[str]) -> list[str]:
    """Return the distinct labels, in numeric order if all are integers, otherwise in text order."""
    distinct = sorted(set(labels))
    if all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in distinct):
        distinct.sort(key=int)
    return distinct

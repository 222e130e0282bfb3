"""Rows of csv, tsv and JSON-lines files, read line by line, and of folders of text files."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice
from typing import Any

from txclf.core.errors import DataError
from txclf.core.text import shown
from txclf.data import detect, raw
from txclf.data.detect import undecodable
from txclf.data.raw import RawBatch, choose, make_batch
from txclf.data.sources import Source, fault, open_stream, text_files

ENOUGH = 12.0
"""Evidence, in lines, from which on the lines of a quoted field count as rows that two stray quotes enclose."""
EVIDENCE_OF_REPEATED_CHARACTER = 4.0
"""Evidence of each character of a value that other rows have in the same column."""
EVIDENCE_OF_ONE_COLUMN = 0.012
"""Evidence of a line in a file of one column, in which every line of a text looks like a row."""
MAX_CELLS = 2**24
"""Maximum number of cells, keys times rows, of a batch of JSON lines."""
RECENT_ROWS = 256
"""Rows with which the lines of a quoted field are compared."""
MAX_RECENT_CHARS = 1_000
"""Characters that are kept of each value of such a row, if it has more in all."""


class Lines:
    """The lines of a text file, with those of the current record."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self._stream = stream
        self._peeked = ""
        self.number = 0
        """Number of lines read."""
        self.record: list[str] = []
        self.chars = 0
        """Characters of the current record."""
        self.batch_chars = 0
        """Characters since the batch began."""

    def __iter__(self) -> Iterator[str]:
        """Return the iterator, itself."""
        return self

    def __next__(self) -> str:
        """Return the next line. Raises `LineTooLong` where the record gets too long, and skips the rest of the line."""
        line, self._peeked = self.peek(), ""
        if not line:
            raise StopIteration
        self.number += 1
        self.record.append(line)
        self.chars += len(line)
        self.batch_chars += len(line)
        if self.chars > raw.MAX_CHARS:
            while line and line[-1] not in "\r\n":
                line = self._stream.readline(raw.MAX_CHARS)
            raise LineTooLong
        return line

    def peek(self) -> str:
        """Return the next line without taking it, at most a little more than `raw.MAX_CHARS`; empty at the end."""
        self._peeked = self._peeked or self._stream.readline(raw.MAX_CHARS + 1)
        return self._peeked

    def start_record(self) -> None:
        """Forget the lines of the record before."""
        self.record.clear()
        self.chars = 0


class LineTooLong(Exception):
    """The current record has more than `raw.MAX_CHARS` characters."""


@contextmanager
def _open(source: Source, newline: str) -> Iterator[Lines]:
    """Open a text file for reading lines. Invalid bytes become lone surrogates, which `_undecoded` finds by row."""
    with fault(source.path, "cannot be read"):
        buffer = io.BufferedReader(open_stream(source.path), 2**17)
    with io.TextIOWrapper(buffer, raw.codec(source.encoding), raw.INVALID_BYTES, newline) as stream:
        try:
            yield Lines(stream)
        except UnicodeError as error:  # of a decoder that cannot go on after invalid bytes
            fix = detect.advice(source) or "Set `data.encoding` to the encoding of the file."
            raise DataError(f"`{source.path}`: {undecodable(source.encoding)}: {error}. {fix}") from None


def _take(source: Source, lines: Lines, items: Iterator[Any], count: int, done: int) -> list[Any]:
    """Return the next `count` items, fewer at the end or if they are long."""
    taken: list[Any] = []
    lines.batch_chars = 0
    with raw.damage(source, done, taken):
        for item in islice(items, count):
            taken.append(item)
            if lines.batch_chars >= raw.MAX_BATCH_CHARS:
                break
    return taken


# ------------------------------------------------------------------------------------------------------- csv and tsv


def read_csv(source: Source, wanted: list[str] | None, batch_rows: int) -> Iterator[RawBatch]:
    """Yield the rows of a csv or tsv file.

    Raises `DataError` for a quote that encloses rows: their number is then unknown.
    """
    with _open(source, newline="") as lines:
        with raw.damage(source, 0):
            records = Records(source, lines)
        header = _take_csv(source, lines, records, 1, 0)
        if not header:
            return
        if isinstance(header[0], str) or _undecoded(header[0]):
            reason = header[0] if isinstance(header[0], str) else undecodable(source.encoding)
            advice = detect.advice(source) or "Save the file as UTF-8 with a header."
            raise DataError(f"`{source.path}`: header line: {reason}. {advice}")
        names = raw.column_names(header[0])
        chosen = choose(source, names, wanted)
        records.header = header[0]
        done, width = 0, len(names)
        while batch := _take_csv(source, lines, records, batch_rows, done):
            problems = {i: record for i, record in enumerate(batch) if isinstance(record, str)}
            for i in problems:
                batch[i] = [None] * width
            by_name = dict(zip(names, map(list, zip(*batch, strict=True)), strict=True))
            columns = {name: by_name[name] for name in chosen}
            for values in columns.values():
                problems |= dict.fromkeys(_undecoded(values), undecodable(source.encoding))
            yield make_batch(source, done, len(batch), columns, problems)
            done += len(batch)
            del batch, by_name, columns  # before the next ones come


class Records:
    """The records of a csv or tsv file: lists of strings, and for a record that is no row the reason (a string)."""

    def __init__(self, source: Source, lines: Lines) -> None:
        is_tsv = source.format == "tsv"
        self._delimiter = "\t" if is_tsv else source.delimiter or ","
        if not is_tsv and (declared := detect.DECLARATION.fullmatch(lines.peek())):
            self._delimiter = declared[1]
            next(lines)
        dialect: dict[str, Any] = {"strict": True, "delimiter": self._delimiter}
        if is_tsv and not lines.peek().startswith('"'):
            dialect = {"quoting": csv.QUOTE_NONE, "delimiter": self._delimiter}
        self._source, self._lines, self._reader = source, lines, csv.reader(lines, **dialect)
        self._count = -1  # without the header
        self.header: list[str] | None = None
        """Fields of the header, once it is read."""
        self._recent: deque[list[str]] = deque(maxlen=RECENT_ROWS)

    def __iter__(self) -> Iterator[list[str] | str]:
        """Return the iterator, itself."""
        return self

    def __next__(self) -> list[str] | str:
        """Return the next record that is not blank. Raises `DataError` if a quote encloses rows."""
        record: list[str] | str = []
        while not record:
            self._lines.start_record()
            record = self._next()
        self._count += 1
        if len(self._lines.record) > 1:
            self._require_no_rows_inside(record)
        if self.header is None or isinstance(record, str):
            return record
        if len(record) != self._width:
            return f"expected {self._width} fields, found {len(record)}"
        if self._width > 1 and record[0].lstrip("\ufeff") == self.header[0] and record[1:] == self.header[1:]:
            return "repeats the header, as a file made of several files does"
        is_long = self._lines.chars > MAX_RECENT_CHARS
        self._recent.append([value[:MAX_RECENT_CHARS] for value in record] if is_long else record)
        return record

    @property
    def _width(self) -> int:
        return len(self.header or [])

    def _next(self) -> list[str] | str:
        try:
            return next(self._reader)
        except LineTooLong:
            limit = f"over {raw.MAX_CHARS:,} characters"
            return f"line {self._lines.number:,}: a record of {limit}, maybe a quote that is never closed"
        except csv.Error as error:
            if "unexpected end" in str(error):
                return f"a quoted field is never closed and runs to the end of the file, line {self._lines.number:,}"
            hint = "; a quote inside a quoted text is written twice, not after a backslash"
            hint = hint if any('\\"' in line for line in self._lines.record) else ""
            return f"line {self._lines.number:,}: malformed csv: {error}{hint}"

    def _require_no_rows_inside(self, record: list[str] | str) -> None:
        """Raise `DataError` if a record of several lines seems to enclose rows."""
        lines = self._lines.record
        if isinstance(record, str):
            encloses = any(line.count(self._delimiter) >= self._width - 1 and not line.isspace() for line in lines[1:])
        else:
            encloses = any(self._evidence_of_rows(column, record) >= ENOUGH for column in range(len(record)))
        if encloses and self.header is not None:
            first = self._lines.number - len(lines) + 1
            problem = record if isinstance(record, str) else f"its quoted text runs to line {self._lines.number:,}"
            raise DataError(
                f"`{self._source.path}`: row {self._count:,}, which begins in line {first:,}: {problem}. It encloses "
                f"{len(lines) - 1:,} line(s) that look like rows. Remove the stray quote in line {first:,}, or write "
                'each quote inside a quoted text twice (""). Save texts that hold such lines as .jsonl or .parquet.'
            )

    def _evidence_of_rows(self, column: int, record: Sequence[str]) -> float:
        """Return how much the text of a field looks like rows that two stray quotes enclose.

        Its first line is then the end of a row, its last line the beginning of one, and the lines between are rows. A
        line of an ordinary text has the right number of delimiters now and then, so one proves little. A value that
        other rows have in the same column, such as a label, proves more.
        """
        lines = [line.split(self._delimiter) for line in re.split("\r\n|\r|\n", record[column])]
        if len(lines) == 1:
            return 0.0
        first, *between, last = lines
        between = [line for line in between if line != [""]]
        rows = [line for line in between if len(line) == self._width]
        known = [set(values) for values in zip(*self._recent, strict=True)] or [set[str]()] * self._width
        if len(record) != self._width:  # a quote in the wrong place: the lines are cut anywhere
            rows = [line for line in lines if len(line) == self._width]
            cells = chain.from_iterable(zip(row, known, strict=True) for row in rows)
        elif len(first) != self._width - column or len(last) != column + 1 or len(rows) < 0.95 * len(between):
            return 0.0
        elif self._width == 1:
            return len(rows) * EVIDENCE_OF_ONE_COLUMN
        else:
            known = [values | {value} for values, value in zip(known, record, strict=True)]
            ends = (zip(first[1:], known[column + 1 :], strict=True), zip(last[:-1], known[:column], strict=True))
            cells = chain(*ends, chain.from_iterable(zip(row, known, strict=True) for row in rows))
            if first[0] in known[column] and last[-1] in known[column]:  # the quotes are around whole values
                cells = chain(cells, [(first[0] + last[-1], {first[0] + last[-1]})])
        repeated = sum(len(value) for value, values in cells if value in values)
        return len(rows) + EVIDENCE_OF_REPEATED_CHARACTER * repeated


_csv_lock = threading.Lock()


def _take_csv(source: Source, lines: Lines, records: Iterator[Any], count: int, done: int) -> list[Any]:
    # The limit of the csv module is global: it is raised for one batch and then restored.
    with _csv_lock:
        before = csv.field_size_limit(raw.MAX_CHARS)
        try:
            return _take(source, lines, records, count, done)
        finally:
            csv.field_size_limit(before)


def _undecoded(values: Iterable[str | None]) -> list[int]:
    """Return the positions of strings with lone surrogates. If there are none, it takes a single fast pass."""
    try:
        "".join(filter(None, values)).encode()
    except UnicodeEncodeError:
        return [i for i, value in enumerate(values) if value and re.search("[\ud800-\udfff]", value)]
    return []


# ------------------------------------------------------------------------------------------------- folders of one label


def read_folder(source: Source, wanted: list[str] | None, batch_rows: int) -> Iterator[RawBatch]:
    """Yield the text files of a folder as rows, with the columns `text` and `label`."""
    chosen = choose(source, ["text", "label"], wanted)
    waiting = deque(text_files(source.path))
    if not waiting:
        raise DataError(f"`{source.path}`: holds no text files `<file>.txt`. Add some, or name another folder.")
    while waiting:
        files, texts, problems = list[str](), list[str | None](), dict[int, str]()
        chars = 0
        while waiting and len(files) < batch_rows and chars < raw.MAX_BATCH_CHARS:
            files.append(waiting.popleft())
            text, reason = _read_text(files[-1], source.encoding)
            if reason:
                problems[len(texts)] = reason
            texts.append(text)
            chars += len(text or "")
        every = {"text": texts, "label": [source.label] * len(files)}
        batch = make_batch(source, 0, len(files), {name: every[name] for name in chosen}, problems)
        yield replace(batch, rows=[1] * len(files), files=files)


def _read_text(file: str, encoding: str) -> tuple[str | None, str | None]:
    """Return the text of a file, or None and the reason why it cannot be read."""
    try:
        content = raw.read_whole(file, 4 * raw.MAX_CHARS)
        text = None if content is None else content.decode(raw.codec(encoding))
    except UnicodeError:
        return None, undecodable(encoding)
    except OSError as error:
        return None, f"cannot be read: {error}"
    if text is None or len(text) > raw.MAX_CHARS:
        return None, f"a text of over {raw.MAX_CHARS:,} characters"
    return text, None


# --------------------------------------------------------------------------------------------------------- JSON lines


def read_jsonl(source: Source, wanted: list[str] | None, batch_rows: int) -> Iterator[RawBatch]:
    """Yield the rows of a file with a JSON object per line."""
    done = 0
    with _open(source, newline="\n") as lines:
        objects = _json_objects(lines, undecodable(source.encoding))
        while batch := _take(source, lines, objects, batch_rows, done):
            problems = {i: reason for i, reason in enumerate(batch) if isinstance(reason, str)}
            for i in problems:
                batch[i] = {}
            names = dict.fromkeys(name for row in batch for name in row)
            if wanted is None and len(names) * len(batch) > MAX_CELLS:
                raise DataError(
                    f"`{source.path}`: {len(names):,} different keys in the {len(batch):,} rows after row {done:,}. "
                    "Give all rows the same keys."
                )
            if done == 0 and len(problems) < len(batch):
                choose(source, list(names), wanted)
            columns = {name: [row.get(name) for row in batch] for name in (names if wanted is None else wanted)}
            yield make_batch(source, done, len(batch), columns, problems)
            done += len(batch)
            del batch, columns  # before the next ones come


def _json_objects(lines: Lines, undecoded: str) -> Iterator[Any]:
    while True:
        lines.start_record()
        try:
            line = next(lines, "")
        except LineTooLong:
            yield f"a line of over {raw.MAX_CHARS:,} characters"
            continue
        if not line:
            return
        if not line.isspace():
            yield _json_object(line, undecoded)


class _RepeatedKey(ValueError):
    """Key that an object has twice."""


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise _RepeatedKey(Counter(name for name, _ in pairs).most_common(1)[0][0])
    return values


_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_LARGE_EXPONENT = re.compile(r"[eE]\+?\d{3}")
_decode_json = json.JSONDecoder(object_pairs_hook=_unique_pairs).decode


def _in_range(number: str) -> float:
    if math.isinf(value := float(number)):
        raise ValueError(f"{shown(number)} is out of the range of numbers")
    return value


def _json_object(line: str, undecoded: str) -> Any:
    """Return the object of a line, or a reason (a string) if the line is no JSON object; `undecoded` for its bytes."""
    try:
        if not line.isascii():
            line.encode()
        value = _decode_json(line)
        if _SURROGATE_ESCAPE.search(line):  # Python accepts half a surrogate pair, but it cannot be encoded
            json.dumps(value, ensure_ascii=False).encode()
        if _LARGE_EXPONENT.search(line):  # Python reads 1e400 as infinity
            json.loads(line, parse_float=_in_range)
    except UnicodeEncodeError:
        return undecoded
    except _RepeatedKey as error:
        return f"key `{shown(str(error))}` comes twice"
    except json.JSONDecodeError as error:
        return f"not valid JSON: {error.msg} at character {error.pos + 1:,}"
    except (ValueError, RecursionError) as error:
        return f"not valid JSON: {error}"
    return value if isinstance(value, dict) else f"JSON of type {type(value).__name__}, expected an object"

"""Parts of a prediction: some thousand rows of one input file each, the same ones every time.

A part is written whole, under a name that says where it belongs and how many rows it has, so a folder's listing tells
what is finished.
"""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple

import pyarrow as pa

from txclf.core import storage
from txclf.core.errors import ConfigError, DataError, StorageError
from txclf.data import records, writers
from txclf.data.records import RawBatch
from txclf.data.sources import Source
from txclf.prediction import columns as annotate
from txclf.prediction.columns import Answer, Columns

ROWS = 4096
CHARS = 2**22
"""A part of long texts has fewer rows: memory holds a part."""
READ_ROWS = 256


class ChunkKey(NamedTuple):
    """Of a part: the number of its source, and its own number there, both from 0."""

    source: int
    number: int


class Count(NamedTuple):
    """Of a part: all its rows, and those without a prediction."""

    rows: int
    bad: int


@dataclass(frozen=True)
class PredictionPlan:
    """What every worker has to know to make parts."""

    model: str
    probabilities: bool
    chunk_rows: int
    columns: Columns
    schema: pa.Schema | None
    """Of the output, where it is Parquet."""
    folder: str
    """Where parts go."""

    def load(self) -> Answer:
        """The model."""
        return annotate.load(self.model, self.probabilities, self.columns.style in ("jsonl", "parquet"))

    def path(self, place: ChunkKey, count: Count, ending: str) -> str:
        """Of a part, or with another ending of what is reported beside it."""
        return storage.join(self.folder, f"{place.source:06}-{place.number:08}-{count.rows}-{count.bad}.{ending}")


def read(number: int, source: Source, chunk_rows: int) -> Iterator[tuple[ChunkKey, RawBatch]]:
    """A source as parts, the same ones every time."""
    waiting: list[RawBatch] = []
    rows = chars = part = 0
    with closing(records.read_raw(source, batch_rows=min(READ_ROWS, chunk_rows))) as batches:  # type: ignore[type-var]
        for batch in batches:
            waiting.append(batch)
            rows += len(batch.rows)
            texts = chain.from_iterable(batch.columns.values())
            chars += sum(len(value) for value in texts if isinstance(value, str))
            if rows >= chunk_rows or chars >= CHARS:
                yield ChunkKey(number, part), _joined(waiting)
                waiting, rows, chars, part = [], 0, 0, part + 1
    if waiting:
        yield ChunkKey(number, part), _joined(waiting)


def _joined(batches: Sequence[RawBatch]) -> RawBatch:
    """Consecutive batches as one. Batches of JSON lines may differ in their columns."""
    names = dict.fromkeys(name for batch in batches for name in batch.columns)
    columns: dict[str, list[Any]] = {name: [] for name in names}
    problems: dict[int, str] = {}
    rows: list[int] = []
    for batch in batches:
        problems |= {len(rows) + place: reason for place, reason in batch.problems.items()}
        for name, values in columns.items():
            values += batch.columns.get(name) or [None] * len(batch.rows)
        rows += batch.rows
    files = [file for batch in batches for file in batch.files]
    return replace(batches[0], rows=rows, files=files, columns=columns, problems=problems)


def make(plan: PredictionPlan, answer: Answer, place: ChunkKey, raw: RawBatch) -> Count:
    """Writes a part; its name, which appears last, says that all of it is there."""
    kept = annotate.kept(raw, plan.columns)
    added, reasons = annotate.answers(answer, raw, plan.columns)
    try:
        content = writers.encode(plan.columns.style, {**kept, **added}, plan.schema)
    except (pa.ArrowException, OverflowError) as error:
        raise DataError(f"`{raw.source.path}`: row {raw.rows[0]:,} on: a column changes type: {error}") from None
    count = Count(len(raw.rows), len(reasons))
    if reasons:
        bad = [{"file": raw.files[i], "row": raw.rows[i], "reason": reasons[i]} for i in sorted(reasons)]
        lines = "".join(json.dumps(error, ensure_ascii=False) + "\n" for error in bad)
        storage.write_bytes(plan.path(place, count, "errors.jsonl"), lines.encode("utf-8", "replace"))
    storage.write_bytes(plan.path(place, count, plan.columns.style), content)
    return count


def give_back() -> None:
    """Returns freed memory to the system: glibc keeps what lies between small objects, and a process would grow by
    hundreds of MB over the parts of a file with long rows."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def start(out: str, plan: PredictionPlan, asked: Mapping[str, Any], restart: bool) -> dict[ChunkKey, Count]:
    """The parts that are there already. Raises `ConfigError` when they are of something else."""
    record = storage.join(plan.folder, "asked.json")
    if restart or not storage.exists(record):
        storage.remove_folder(plan.folder)
        try:
            storage.write_json(record, asked)
        except StorageError as error:
            raise StorageError(f"`{out}`: cannot be written: {error}") from None
        return {}
    before = storage.read_json(record)
    other = [name for name, value in asked.items() if before.get(name) != value]
    if other:
        raise ConfigError(
            f"`{plan.folder}`: parts of a stopped prediction with other {' and '.join(other)}: ask for it again in the "
            "same words to go on with it, or add --restart to begin anew"
        )
    found = {}
    pattern = re.compile(rf"(\d+)-(\d+)-(\d+)-(\d+)\.{plan.columns.style}")
    for name in storage.list_folder(plan.folder):
        if match := pattern.fullmatch(name):
            source, number, rows, bad = map(int, match.groups())
            found[ChunkKey(source, number)] = Count(rows, bad)
        elif name.startswith("."):
            storage.remove_file(storage.join(plan.folder, name))  # what a killed writer left
    return found

"""Chunks of a prediction: a few thousand rows of one input file each, the same ones in every attempt.

Each chunk becomes one part file. The file appears when it is complete, and its name holds the position and the number
of rows of the chunk, so a listing of the folder shows what is finished.
"""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple

import pyarrow as pa

from txclf.core import storage
from txclf.core.errors import ConfigError
from txclf.core.lease import FILE, Holding
from txclf.data import raw, records, writers
from txclf.data.records import RawBatch
from txclf.data.sources import Source
from txclf.prediction.columns import LIST_FORMATS, Answer, Columns, added_columns, input_columns, load_answer

CHUNK_ROWS = 4096
MAX_CHUNK_CHARS = 2**22
"""Characters after which a chunk ends early, because a whole chunk is held in memory."""
READ_ROWS = 256
"""Rows per read of an input file."""
RECORD = "asked.json"
"""File of the arguments of the prediction, in the folder of the parts."""


class ChunkKey(NamedTuple):
    """Position of a chunk: the number of its source, and its number in the source, both from 0."""

    source: int
    number: int


class Count(NamedTuple):
    """Rows of a chunk."""

    rows: int
    """All rows."""
    bad: int
    """Rows without a prediction."""


@dataclass(frozen=True)
class PredictionPlan:
    """Everything that a worker needs to predict chunks."""

    model: str
    """Path or URI of the bundle."""
    probabilities: bool
    """True to add a column for each label."""
    chunk_rows: int
    """Rows per chunk."""
    columns: Columns
    types: Mapping[str, pa.DataType]
    """Known types of the input columns of a Parquet output, so that a chunk that does not fit fails at once."""
    holding: Holding
    """Lease of the folder of the part files."""
    coverage: float | None = None
    """Coverage of the prediction sets to add; None for no sets."""

    @property
    def folder(self) -> str:
        """Folder of the part files."""
        return self.holding.folder

    def writer(self) -> Callable[[tuple[ChunkKey, RawBatch]], tuple[ChunkKey, Count]]:
        """Load the model and return the function that predicts a chunk and writes its part file."""
        lists = self.columns.style in LIST_FORMATS
        answer = load_answer(self.model, probabilities=self.probabilities, lists=lists, coverage=self.coverage)

        def write_part(chunk: tuple[ChunkKey, RawBatch]) -> tuple[ChunkKey, Count]:
            key, raw = chunk
            count = write(self, answer, key, raw)
            trim_memory()
            return key, count

        return write_part

    def file(self, key: ChunkKey, count: Count, ending: str) -> str:
        """Return the name of a part file, or with the ending `errors.jsonl` of the report of its bad rows."""
        return f"{key.source:06}-{key.number:08}-{count.rows}-{count.bad}.{ending}"


def read(number: int, source: Source, chunk_rows: int) -> Iterator[tuple[ChunkKey, RawBatch]]:
    """Read a source as chunks; repeated calls yield the same chunks. `number` is the number of the source."""
    batches: list[RawBatch] = []
    rows = chars = chunk = 0
    with closing(records.read_raw(source, batch_rows=min(READ_ROWS, chunk_rows))) as stream:  # type: ignore[type-var]
        for batch in stream:
            batches.append(batch)
            rows += len(batch.rows)
            chars += sum(map(raw.num_chars, chain.from_iterable(batch.columns.values())))
            if rows >= chunk_rows or chars >= MAX_CHUNK_CHARS:
                yield ChunkKey(number, chunk), _concatenated(batches)
                batches, rows, chars, chunk = [], 0, 0, chunk + 1
    if batches:
        yield ChunkKey(number, chunk), _concatenated(batches)


def _concatenated(batches: Sequence[RawBatch]) -> RawBatch:
    """Return consecutive batches as one. Batches of JSON lines may differ in their columns."""
    names = dict.fromkeys(name for batch in batches for name in batch.columns)
    columns: dict[str, list[Any]] = {name: [] for name in names}
    problems: dict[int, str] = {}
    rows: list[int] = []
    for batch in batches:
        problems |= {len(rows) + position: reason for position, reason in batch.problems.items()}
        for name, values in columns.items():
            values += batch.columns.get(name) or [None] * len(batch.rows)
        rows += batch.rows
    files = [file for batch in batches for file in batch.files]
    return replace(batches[0], rows=rows, files=files, columns=columns, problems=problems)


def write(plan: PredictionPlan, answer: Answer, key: ChunkKey, raw: RawBatch) -> Count:
    """Predict a chunk and write its part file, after the report of its bad rows.

    Raises `DataError` if a Parquet column cannot hold its values unchanged, or the input changes its columns.
    """
    inputs = input_columns(raw, plan.columns)
    added, reasons = added_columns(answer, raw, plan.columns)
    content = encoded(plan.columns, raw, {**inputs, **added})
    if plan.columns.style == "parquet":
        writers.widened(plan.types, pa.ipc.open_file(content).schema, raw.source.path)
    count = Count(len(raw.rows), len(reasons))
    if reasons:
        bad = [{"file": raw.files[i], "row": raw.rows[i], "reason": reasons[i]} for i in sorted(reasons)]
        lines = "".join(json.dumps(error, ensure_ascii=False) + "\n" for error in bad)
        plan.holding.write(plan.file(key, count, "errors.jsonl"), lines.encode("utf-8", "replace"))
    plan.holding.write(plan.file(key, count, writers.chunk_ending(plan.columns.style)), content)
    return count


def encoded(columns: Columns, raw: RawBatch, values: Mapping[str, Sequence[object]]) -> bytes:
    """Return columns of a batch in the format of the output. Raises `DataError` if a column cannot hold its values."""
    types = {} if raw.schema is None else dict(zip(raw.schema.names, raw.schema.types, strict=True))
    try:
        return writers.encode(columns.style, values, {**types, **columns.added})
    except writers.ColumnTypeError as error:
        rows = f"rows {raw.rows[0]:,} to {raw.rows[-1]:,}"
        raise writers.type_error(raw.source.path, error.column, f"{rows}: {error.reason}") from None


def trim_memory() -> None:
    """Return freed memory to the operating system.

    glibc keeps the gaps between small objects, so a process would grow by hundreds of MB over the chunks of a file with
    long rows.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def clear(folder: str) -> None:
    """Remove all part files, but not the lease of the process that writes them."""
    for name in storage.list_folder(folder):
        if name != FILE:
            storage.remove_file(storage.join(folder, name))


def finished_chunks(plan: PredictionPlan, arguments: Mapping[str, Any], restart: bool) -> dict[ChunkKey, Count]:
    """Return the chunks that an interrupted prediction finished; with `restart` delete them.

    Raises `ConfigError` if they come from a prediction with other arguments.
    """
    record = storage.join(plan.folder, RECORD)
    if restart or not storage.exists(record):
        clear(plan.folder)
        storage.write_json(record, arguments)
        return {}
    previous = storage.read_object(record)
    changed = [name for name, value in arguments.items() if previous.get(name) != value]
    if changed:
        different = " and ".join("different inputs" if name == "inputs" else f"a different {name}" for name in changed)
        raise ConfigError(
            f"`{plan.folder}` holds an interrupted prediction with {different}. "
            "Rerun with the original arguments to resume it, or pass --restart to start over."
        )
    finished = {}
    pattern = re.compile(rf"(\d+)-(\d+)-(\d+)-(\d+)\.{writers.chunk_ending(plan.columns.style)}")
    for name in storage.list_folder(plan.folder):
        if match := pattern.fullmatch(name):
            source, number, rows, bad = map(int, match.groups())
            finished[ChunkKey(source, number)] = Count(rows, bad)
        elif name.startswith("."):
            storage.remove_file(storage.join(plan.folder, name))  # left by a killed writer
    return finished

"""Predict files of any size with a bundle: the output has all input columns and rows, plus the predictions.

    inputs ──read──▶ chunks of a few thousand rows ──one model per worker──▶ .<out>.parts/ ──join──▶ out

The chunks are the same in this process and on Ray. Each part file appears when it is complete, so a later attempt
resumes after the finished chunks, and each row is in exactly one part.

A row that cannot be read keeps its place, with nulls, and is reported in `<out>.errors.jsonl`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pyarrow as pa

from txclf._version import __version__
from txclf.config.sections import Compute
from txclf.core import lease, storage
from txclf.core.errors import DataError, StorageError
from txclf.data import writers
from txclf.data.records import RawBatch
from txclf.data.sources import Source, find_sources, stamp
from txclf.inference import bundle
from txclf.prediction import parts, ray_pool
from txclf.prediction.columns import Columns, output_columns
from txclf.prediction.parts import ChunkKey, Count, PredictionPlan


@dataclass(frozen=True)
class PredictionSummary:
    """Result of a prediction."""

    rows: int
    """All rows of the output."""
    bad: int
    """Rows without a prediction."""
    columns: list[str]
    """Added columns."""
    resumed_rows: int = 0
    """Rows that an earlier, interrupted attempt had finished."""


def predict(
    model: str,
    inputs: Sequence[str],
    *,
    out: str,
    probabilities: bool = False,
    text_columns: Sequence[str] | None = None,
    on_progress: Callable[[int], None] = lambda rows: None,
    compute: Compute | None = None,
    chunk_rows: int = parts.CHUNK_ROWS,
    restart: bool = False,
) -> PredictionSummary:
    """Predict every row of the inputs, in order, and write one file; the ending of `out` selects its format.

    Adds the columns `label` and `probability`, and with `probabilities` one column per label. A `multilabel` model adds
    `labels` instead: lists, the most likely label first, joined by `data.label_delimiter` in csv and tsv. A `seq2seq`
    model adds `output`. If the input has a column of that name, the added one is called `predicted_…`.

    `compute` distributes the chunks over Ray workers; Ray must be connected, and every node must reach all paths.
    `on_progress` receives the number of finished rows.

    `out` appears when it is complete. An interrupted prediction resumes when it is called with the same arguments;
    `restart` starts over.

    Raises `ConfigError` if the output format is unknown, another process predicts into `out` or an interrupted
    prediction has other arguments, `DataError` if an input cannot be read.
    """
    style, codec = writers.style(out)
    if storage.is_folder(out):
        raise StorageError(f"`{out}`: cannot be written: it is a folder. Pass the path of a file.")
    model, sources = storage.absolute(model), find_sources(inputs)
    metadata = bundle.read_metadata(model)
    stream = (chunk for number, source in enumerate(sources) for chunk in parts.read(number, source, chunk_rows))
    first = next(stream, None)
    if first is None:
        raise DataError(f"no row in {', '.join(inputs)}. Pass files that have rows.")
    columns = output_columns(metadata, first[1], style=style, probabilities=probabilities, texts=text_columns)
    try:
        storage.require_writable(storage.folder_of(out))
    except StorageError as error:
        raise StorageError(f"`{out}`: cannot be written: {error}. Pass another --out.") from None
    with lease.held(_parts_folder(out), work=f"predicts into `{out}`", then="run the command again") as holding:
        plan = PredictionPlan(model, probabilities, chunk_rows, columns, _schema(first[1], columns), holding)
        finished = parts.finished_chunks(plan, _arguments(plan, sources), restart)
        resumed_rows = sum(count.rows for count in finished.values())
        try:
            if compute is None:
                _predict_here(plan, chain([first], stream), finished, on_progress)
            else:
                ray_pool.run(plan, sources, compute, finished, on_progress)
        except DataError as error:
            if error.__cause__ is None:  # the rows themselves are invalid, so the prediction can never be resumed
                parts.clear(plan.folder)
            raise
        _join(plan, finished, out, codec)
        parts.clear(plan.folder)
    rows, bad = (sum(counts) for counts in zip(*finished.values(), strict=True))
    return PredictionSummary(rows, bad, list(columns.added), resumed_rows)


def _predict_here(
    plan: PredictionPlan,
    stream: Iterator[tuple[ChunkKey, RawBatch]],
    finished: dict[ChunkKey, Count],
    on_progress: Callable[[int], None],
) -> None:
    """Predict the missing chunks in this process and add them to `finished`."""
    answer = plan.load_answer()
    rows = 0
    for key, raw in stream:
        if key not in finished:
            finished[key] = parts.write(plan, answer, key, raw)
            parts.trim_memory()
        rows += finished[key].rows
        on_progress(rows)


def _join(plan: PredictionPlan, finished: Mapping[ChunkKey, Count], out: str, codec: str | None) -> None:
    """Join the part files to `out`, and the reports of bad rows to `<out>.errors.jsonl`."""
    columns, keys = plan.columns, sorted(finished)
    plan.holding.require()
    paths = (plan.path(key, finished[key], columns.style) for key in keys)
    writers.join(paths, out, columns.style, codec, [*columns.inputs, *columns.added])
    reports = [plan.path(key, finished[key], "errors.jsonl") for key in keys if finished[key].bad]
    if reports:
        writers.join(reports, f"{out}.errors.jsonl", "jsonl", None, ())
    else:
        storage.remove_file(f"{out}.errors.jsonl")  # of an earlier prediction


def _schema(first: RawBatch, columns: Columns) -> pa.Schema | None:
    """Return the schema of a Parquet output: the types of the input, or types inferred from its first rows."""
    if columns.style != "parquet":
        return None
    try:
        inputs = writers.infer(first.columns) if first.schema is None else first.schema
    except (pa.ArrowException, OverflowError) as error:
        raise parts.column_type_error(first, error) from None
    return pa.schema([*inputs.remove_metadata(), *(pa.field(name, kind) for name, kind in columns.added.items())])


def _parts_folder(out: str) -> str:
    """Return the folder of the part files: hidden, so that a reader of all files of a folder skips it."""
    name = out.partition("?")[0] if "://" in out else out
    return storage.join(storage.folder_of(out), f".{name.rpartition('/')[2]}.parts")


def _arguments(plan: PredictionPlan, sources: Sequence[Source]) -> dict[str, Any]:
    """Return the arguments that must be equal to resume a prediction, as JSON values."""
    metadata = storage.read_bytes(storage.join(plan.model, bundle.METADATA))  # has the checksums of the other files
    return {
        "version": __version__,
        "model": hashlib.sha256(metadata).hexdigest(),
        "inputs": [[source.path, *map(list, stamp(source))] for source in sources],
        "--text": plan.columns.texts,
        "--probabilities": plan.probabilities,
        "--chunk-rows": plan.chunk_rows,
    }

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
import pyarrow.parquet as pq

from txclf._version import __version__
from txclf.config.sections import Compute
from txclf.core import html_table, lease, openmp, storage
from txclf.core.errors import DataError, StorageError
from txclf.data import detect, writers
from txclf.data.records import RawBatch
from txclf.data.sources import Source, ending, fault, find_sources, same_file, stamp, state, unchanged
from txclf.data.writers import Chunk
from txclf.inference import bundle
from txclf.prediction import parts
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
    advice: str | None = None
    """How to read the rows without a prediction, if an input seems to have another encoding."""

    def _repr_html_(self) -> str:
        """Return the summary as a table for a notebook."""
        counts = [("rows", self.rows), ("rows without a prediction", self.bad), ("resumed rows", self.resumed_rows)]
        return html_table.table("Predictions", [*counts, ("added columns", ", ".join(self.columns))])


def predict(
    model: str,
    inputs: Sequence[str],
    *,
    out: str,
    probabilities: bool = False,
    coverage: float | None = None,
    text_columns: Sequence[str] | None = None,
    encoding: str = "utf-8",
    delimiter: str | None = None,
    on_progress: Callable[[int], None] = lambda rows: None,
    compute: Compute | None = None,
    chunk_rows: int = parts.CHUNK_ROWS,
    restart: bool = False,
) -> PredictionSummary:
    """Predict every row of the inputs, in order, and write one file; the ending of `out` selects its format.

    Adds the columns `label` and `probability`, and with `probabilities` one column per label, with `coverage` the
    prediction set in `labels_in_set`. A `multilabel` model adds
    `labels` instead: lists, the most likely label first, joined by `data.label_delimiter` in csv and tsv. A `seq2seq`
    model adds `output`. If the input has a column of that name, the added one is called `predicted_…`.

    `encoding` is that of text files, `delimiter` that of csv files; None is a comma.

    `compute` distributes the chunks over Ray workers; Ray must be connected, and every node must reach all paths.
    `on_progress` receives the number of finished rows.

    `out` appears when it is complete. An interrupted prediction resumes when it is called with the same arguments;
    `restart` starts over.

    Raises `ConfigError` if the output format is unknown, another process predicts into `out` or an interrupted
    prediction has other arguments, `DataError` if an input cannot be read, or is the output and has bad rows.
    """
    style, codec = writers.style(out)
    if storage.is_folder(out):
        raise StorageError(f"`{out}`: cannot be written: it is a folder. Pass the path of a file.")
    model, sources = storage.absolute(model), find_sources(inputs, encoding, delimiter)
    before = state(sources)
    metadata = bundle.read_metadata(model)
    stream = (chunk for number, source in enumerate(sources) for chunk in parts.read(number, source, chunk_rows))
    first = next(stream, None)
    if first is None:
        raise DataError(f"no row in {', '.join(inputs)}. Pass files that have rows.")
    columns = output_columns(
        metadata, first[1], style=style, probabilities=probabilities, texts=text_columns, coverage=coverage
    )
    types = _types(sources, first[1], columns)
    try:
        storage.require_writable(storage.folder_of(out))
    except StorageError as error:
        raise StorageError(f"`{out}`: cannot be written: {error}. Pass another --out.") from None
    with lease.held(_parts_folder(out), work=f"predicts into `{out}`", then="run the command again") as holding:
        plan = PredictionPlan(model, probabilities, chunk_rows, columns, types, holding, coverage)
        finished = parts.finished_chunks(plan, _arguments(plan, sources), restart)
        resumed_rows = sum(count.rows for count in finished.values())
        on_progress(resumed_rows)
        try:
            with unchanged(sources, before):
                if compute is None:
                    _predict_here(plan, chain([first], stream), finished, on_progress)
                else:
                    _predict_on_ray(plan, sources, compute, finished, on_progress)
            if any(
                same_file(sources[number].path, out) for number in {key.source for key in finished if finished[key].bad}
            ):
                raise DataError(
                    f"`{out}`: is one of the inputs, and has rows that cannot be read, which would be lost. "
                    "Pass another --out."
                )
            _join(plan, sources, finished, out, codec)
        except DataError as error:
            if error.__cause__ is None:  # the rows themselves are invalid, so the prediction can never be resumed
                plan.holding.discard()
            raise
        plan.holding.discard()
    rows, bad = (sum(counts) for counts in zip(*finished.values(), strict=True))
    advice = next(filter(None, map(detect.advice, sources)), None) if bad else None
    return PredictionSummary(rows, bad, list(columns.added), resumed_rows, advice)


def _predict_here(
    plan: PredictionPlan,
    stream: Iterator[tuple[ChunkKey, RawBatch]],
    finished: dict[ChunkKey, Count],
    on_progress: Callable[[int], None],
) -> None:
    """Predict the missing chunks in this process and add them to `finished`."""
    write = plan.writer()
    rows = sum(count.rows for count in finished.values())
    with openmp.spinning_on_free_cpus():
        for key, raw in stream:
            if key not in finished:
                _, finished[key] = write((key, raw))
                rows += finished[key].rows
                on_progress(rows)


def _predict_on_ray(
    plan: PredictionPlan,
    sources: Sequence[Source],
    compute: Compute,
    finished: dict[ChunkKey, Count],
    on_progress: Callable[[int], None],
) -> None:
    """Predict the missing chunks on Ray and add them to `finished`. Actors write the part files to storage.

    Raises `ClusterError` and the `TxclfError` of a chunk as `actor_pool.answers` does.
    """
    from txclf import ray_cluster
    from txclf.data import actor_pool

    skipped, chunk_rows = set(finished), plan.chunk_rows

    def read(number: int) -> Iterator[tuple[ChunkKey, RawBatch]]:
        return (chunk for chunk in parts.read(number, sources[number], chunk_rows) if chunk[0] not in skipped)

    counts = actor_pool.answers(
        read,
        plan.writer,
        compute,
        num_sources=len(sources),
        num_readers=ray_cluster.num_readers(),
        work="the prediction",
        advice="Rerun the command to resume after the finished chunks.",
    )
    total = sum(count.rows for count in finished.values())
    for key, count in counts:
        finished[key] = count
        total += count.rows
        on_progress(total)


def _join(
    plan: PredictionPlan, sources: Sequence[Source], finished: Mapping[ChunkKey, Count], out: str, codec: str | None
) -> None:
    """Join the part files to `out`, and the reports of bad rows to `<out>.errors.jsonl`."""
    columns = plan.columns
    plan.holding.require()

    def chunks(keys: Sequence[ChunkKey], ending: str) -> list[Chunk]:
        return [
            Chunk(storage.join(plan.folder, plan.file(key, finished[key], ending)), sources[key.source].path)
            for key in keys
        ]

    keys = sorted(finished)
    names = [*columns.inputs, *columns.added]
    writers.join(chunks(keys, writers.chunk_ending(columns.style)), out, columns.style, codec, names)
    if bad := [key for key in keys if finished[key].bad]:
        writers.join(chunks(bad, "errors.jsonl"), storage.named_like(out, ".errors.jsonl"), "jsonl", None, ())
    else:
        storage.remove_file(storage.named_like(out, ".errors.jsonl"))  # of an earlier prediction


def _types(sources: Sequence[Source], first: RawBatch, columns: Columns) -> Mapping[str, pa.DataType]:
    """Return the types of the input columns of a Parquet output: of all Parquet inputs and of the first chunk.

    Raises `DataError` if a column has no common type.
    """
    if columns.style != "parquet":
        return {}
    schema = pa.ipc.open_file(parts.encoded(columns, first, first.columns)).schema
    files = [
        source.path
        for source in sources
        if source.format == "parquet" and ending(source.path)[1] is None and stamp(source)[0][1] != 0
    ]
    known = writers.common_types((_parquet_schema(path), path) for path in files)
    return writers.widened(known, schema, first.source.path)


def _parquet_schema(path: str) -> pa.Schema:
    filesystem, inner = storage.resolve(path)
    with fault(path, "cannot be read as parquet"):
        return pq.read_schema(inner, filesystem=filesystem)


def _parts_folder(out: str) -> str:
    """Return the folder of the part files: hidden, so that a reader of all files of a folder skips it."""
    name = storage.split_query(out)[0].rpartition("/")[2]
    return storage.join(storage.folder_of(out), f".{name}.parts")


def _arguments(plan: PredictionPlan, sources: Sequence[Source]) -> dict[str, Any]:
    """Return the arguments that must be equal to resume a prediction, as JSON values."""
    metadata = storage.read_bytes(storage.join(plan.model, bundle.METADATA))  # has the checksums of the other files
    return {
        "version": __version__,
        "model": hashlib.sha256(metadata).hexdigest(),
        "inputs": [[source.path, *map(list, stamp(source))] for source in sources],
        "--text-column": plan.columns.texts,
        "--probabilities": plan.probabilities,
        "--coverage": plan.coverage,
        "--chunk-rows": plan.chunk_rows,
        "--encoding": sources[0].encoding,
        "--delimiter": sources[0].delimiter,
    }

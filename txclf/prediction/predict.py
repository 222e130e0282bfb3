"""`txclf predict`: a bundle over files of any size. The input's columns and rows stay; label and probability are added.

    inputs ──read──▶ parts of some thousand rows ──a model each──▶ .<out>.parts/ ──join──▶ out

The same parts in this process and on Ray. A part is written whole, under a name that says where it belongs, so what a
killed prediction has finished is there for the next: each row is in exactly one part.

A row that cannot be read keeps its place, with nulls, and is reported in `<out>.errors.jsonl`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pyarrow as pa

from txclf._version import __version__
from txclf.config.sections import Compute
from txclf.core import storage
from txclf.core.errors import DataError, StorageError
from txclf.data import writers
from txclf.data.records import RawBatch
from txclf.data.sources import Source, find_sources, stamp
from txclf.inference import bundle
from txclf.prediction import columns as annotate
from txclf.prediction import parts, ray_pool
from txclf.prediction.columns import Columns
from txclf.prediction.parts import ChunkKey, Count, PredictionPlan


@dataclass(frozen=True)
class Done:
    """What a prediction run did: rows = predicted + bad."""

    rows: int
    bad: int
    columns: list[str]
    """The columns that were added."""
    found: int = 0
    """Rows that an earlier, stopped prediction had finished."""


def predict(
    model: str,
    inputs: Sequence[str],
    *,
    out: str,
    probabilities: bool = False,
    text_columns: Sequence[str] | None = None,
    show: Callable[[int], None] = lambda rows: None,
    compute: Compute | None = None,
    chunk_rows: int = parts.ROWS,
    restart: bool = False,
) -> Done:
    """Predicts every row of the inputs, in order, into one file; the ending of `out` says its format.

    Adds `label` and `probability` (`predicted_label` and so on where the input has such a column), and with
    `probabilities` a column for each label. A `multilabel` model adds `labels` instead: lists, the likeliest first, and
    joined by `data.label_delimiter` in csv and tsv. A `seq2seq` model adds `output`.

    With `compute` the parts are made by workers of Ray, which must be connected; every node must reach all paths.

    Nothing stands at `out` unless all of it does. A prediction that was stopped goes on where it was when it is asked
    for again in the same words; `restart` begins anew.

    Raises `ConfigError` for an output format it cannot write, or when a stopped prediction of something else lies
    there; `DataError` for inputs it cannot read.
    """
    style, codec = writers.style(out)
    if storage.is_folder(out):
        raise StorageError(f"`{out}`: cannot be written: it is a folder")
    model, sources = storage.absolute(model), find_sources(inputs)
    metadata = bundle.read_metadata(model)
    stream = (part for number, source in enumerate(sources) for part in parts.read(number, source, chunk_rows))
    first = next(stream, None)
    if first is None:
        raise DataError(f"no row in {', '.join(inputs)}")
    columns = annotate.columns(metadata, style, probabilities, text_columns, first[1])
    asked = _asked(model, sources, columns, probabilities, chunk_rows)
    plan = PredictionPlan(model, probabilities, chunk_rows, columns, _schema(first[1], columns), _folder(out))
    finished = parts.start(out, plan, asked, restart)
    before = sum(count.rows for count in finished.values())
    try:
        if compute is None:
            _here(plan, chain([first], stream), finished, show)
        else:
            ray_pool.run(plan, sources, compute, finished, show)
    except DataError as error:
        if error.__cause__ is None:  # the rows themselves are at fault, so it could never go on
            storage.remove_folder(plan.folder)
        raise
    places = sorted(finished)
    names = [*columns.given, *columns.added]
    writers.join((plan.path(place, finished[place], style) for place in places), out, style, codec, names)
    bad = [plan.path(place, finished[place], "errors.jsonl") for place in places if finished[place].bad]
    if bad:
        writers.join(bad, f"{out}.errors.jsonl", "jsonl", None, ())
    else:
        storage.remove_file(f"{out}.errors.jsonl")  # an earlier prediction's
    storage.remove_folder(plan.folder)
    rows = sum(count.rows for count in finished.values())
    return Done(rows, sum(count.bad for count in finished.values()), list(columns.added), before)


def _here(
    plan: PredictionPlan,
    stream: Iterator[tuple[ChunkKey, RawBatch]],
    finished: dict[ChunkKey, Count],
    show: Callable[[int], None],
) -> None:
    """Makes the parts that are missing, in this process."""
    answer = plan.load()
    rows = 0
    for place, raw in stream:
        if place not in finished:
            finished[place] = parts.make(plan, answer, place, raw)
            parts.give_back()
        rows += finished[place].rows
        show(rows)


def _schema(first: RawBatch, columns: Columns) -> pa.Schema | None:
    """Of a Parquet output: the input's own types where it has them, else those of the first rows."""
    if columns.style != "parquet":
        return None
    try:
        given = writers.infer(first.columns) if first.schema is None else first.schema
    except (pa.ArrowException, OverflowError) as error:
        raise DataError(f"`{first.source.path}`: row 1 on: a column changes type: {error}") from None
    return pa.schema([*given.remove_metadata(), *(pa.field(name, kind) for name, kind in columns.added.items())])


def _folder(out: str) -> str:
    """Of the parts: hidden, so that nobody who reads all files of a folder reads half of an output."""
    name = out.partition("?")[0] if "://" in out else out
    return storage.join(storage.folder_of(out), f".{name.rpartition('/')[2]}.parts")


def _asked(
    model: str, sources: Sequence[Source], columns: Columns, probabilities: bool, chunk_rows: int
) -> dict[str, Any]:
    """What makes two predictions the same, as JSON."""
    metadata = storage.read_bytes(storage.join(model, bundle.METADATA))  # it has the hashes of the other files
    return {
        "version": __version__,
        "model": hashlib.sha256(metadata).hexdigest(),
        "inputs": [[source.path, *map(list, stamp(source))] for source in sources],
        "--text": columns.texts,
        "--probabilities": probabilities,
        "--chunk-rows": chunk_rows,
    }

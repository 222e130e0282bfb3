"""Columns of the output of `predict`: the input columns, then labels, probabilities or generated texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np
import pyarrow as pa

from txclf.core.errors import ConfigError, DataError
from txclf.core.text import listed, nearest, shown
from txclf.data import detect
from txclf.data.records import RawBatch, require_one_text
from txclf.inference import prediction_sets
from txclf.inference.classifier import Classifier
from txclf.inference.load import load_model
from txclf.inference.metadata import BundleMetadata
from txclf.inference.seq2seq import Seq2Seq

Answer = Callable[[list[tuple[str, ...]]], Iterable[list[object]]]
"""Predicts rows of text columns; returns the values of the added columns for each row."""
BATCH_ROWS, GPU_BATCH_ROWS = 64, 512
GPU_BATCH_TOKENS = 2**17
"""Tokens of a batch on a GPU at most, for models that read long texts."""
SETS = "labels_in_set"
"""Column of the prediction sets."""
LIST_FORMATS = ("jsonl", "parquet")
"""Output formats whose cells can hold lists."""


@dataclass(frozen=True)
class Columns:
    """Columns of an output, fixed by the first rows of the input."""

    texts: list[str]
    """Input columns that the model reads."""
    inputs: list[str]
    """All input columns."""
    added: dict[str, pa.DataType]
    """Columns that the prediction adds; none of them has the name of an input column."""
    style: str
    """Format of the output."""
    delimiter: str
    """Separator of the labels in a csv or tsv cell."""


def output_columns(
    metadata: BundleMetadata,
    first: RawBatch,
    *,
    style: str,
    probabilities: bool,
    texts: Sequence[str] | None,
    coverage: float | None = None,
) -> Columns:
    """Return the columns of the output for an input that begins with `first`.

    Raises `ConfigError` if the model or the format cannot give them, `DataError` if a text column is missing.
    """
    trained = metadata.text_columns
    chosen = list(texts or trained)
    if len(chosen) != len(trained):
        raise ConfigError(
            f"--text-column: {len(chosen)} column(s), but the model reads {len(trained)} ({listed(trained, '')}). "
            "Pass --text-column once per column, in this order."
        )
    require_one_text(first.source, chosen)
    columns = Columns(chosen, list(first.columns), {}, style, metadata.label_delimiter)
    text_columns(first, columns)
    if coverage is not None:
        prediction_sets.minimum(metadata, coverage, "--coverage")
    added = _added_columns(metadata, style, probabilities, with_sets=coverage is not None)
    added = _with_free_names(columns.inputs, added)
    return replace(columns, added=added)


def _added_columns(
    metadata: BundleMetadata, style: str, probabilities: bool, with_sets: bool
) -> dict[str, pa.DataType]:
    spec = metadata.task_spec
    if not spec.has_labels:
        if probabilities:
            raise ConfigError(f"--probabilities: a `{spec.name}` model has no labels. Remove --probabilities.")
        return {"output": pa.string()}
    each = {f"probability_{label}": pa.float64() for label in metadata.labels} if probabilities else {}
    if spec.is_multilabel:
        return {"labels": _labels_type(metadata, style), **each}
    sets = {SETS: _labels_type(metadata, style)} if with_sets else {}
    return {"label": pa.string(), "probability": pa.float64(), **sets, **each}


def _labels_type(metadata: BundleMetadata, style: str) -> pa.DataType:
    """Return the type of a column of several labels. Raises `ConfigError` if the format cannot hold the labels."""
    if style in LIST_FORMATS:
        return pa.list_(pa.string())
    delimiter = metadata.label_delimiter
    for label in metadata.labels:
        if delimiter in label:
            raise ConfigError(
                f"`{shown(label)}`: the label contains the delimiter `{delimiter}`, so a {style} file cannot hold it. "
                "End --out in .jsonl or .parquet."
            )
    return pa.string()


def _with_free_names(taken: Sequence[str], added: dict[str, pa.DataType]) -> dict[str, pa.DataType]:
    named: dict[str, pa.DataType] = {}
    for name, kind in added.items():
        while name in taken or name in named:
            name = f"predicted_{name}"
        named[name] = kind
    return named


def text_columns(raw: RawBatch, columns: Columns) -> list[str]:
    """Return the names of the text columns in a batch. Raises `DataError` if one is missing."""
    names = ["text"] if raw.source.format == "text" else columns.texts
    missing = [name for name in names if name not in raw.columns]
    # A later batch of JSON lines may lack a key in every row: its rows are reported as bad rows instead.
    is_later_jsonl = raw.source.format == "jsonl" and raw.rows[0] > 1
    if missing and not is_later_jsonl and len(raw.problems) < len(raw.rows):
        raise DataError(
            f"`{raw.source.path}`: no column `{shown(missing[0])}`, it has {listed(raw.columns)}. "
            f"{nearest(missing[0], list(raw.columns))}"
            f"{detect.advice(raw.source) or 'Name the text column with --text-column.'}"
        )
    return names


def input_columns(raw: RawBatch, columns: Columns) -> dict[str, list[object]]:
    """Return the input columns of a batch in the order of the output.

    A JSON line may lack columns, and may add new ones to an output of JSON lines. Raises `DataError` for other changes.
    """
    text_columns(raw, columns)
    is_jsonl = raw.source.format == "jsonl"
    absent = [name for name in columns.inputs if name not in raw.columns and not is_jsonl]
    new = [name for name in raw.columns if name not in columns.inputs]
    unwritable = [name for name in new if columns.style != "jsonl" or name in columns.added]
    if absent or unwritable:
        problem = f"no column `{shown(absent[0])}`" if absent else f"an additional column `{shown(unwritable[0])}`"
        raise DataError(
            f"`{raw.source.path}`: {problem} from row {raw.rows[0]:,} on. "
            "Give all inputs the columns of the first row, or predict them separately."
        )
    return {name: raw.columns.get(name) or [None] * len(raw.rows) for name in columns.inputs} | raw.columns


def load_answer(folder: str, *, probabilities: bool, lists: bool, coverage: float | None = None) -> Answer:
    """Load a bundle and return the function that predicts with it.

    `coverage` adds the prediction set. `lists` gives several labels as a list, otherwise they are joined by the
    delimiter of the bundle.
    """
    model = load_model(folder)
    if isinstance(model, Seq2Seq):
        return lambda texts: ([output] for output in model.outputs(texts))
    batch_rows = _batch_rows(model.device.type, model.metadata.max_length)
    if model.is_multilabel:
        return lambda texts: _multilabel_values(model, model.probabilities(texts, batch_rows), probabilities, lists)
    minimum = None if coverage is None else prediction_sets.minimum(model.metadata, coverage, "--coverage")
    return lambda texts: _label_values(model, model.probabilities(texts, batch_rows), probabilities, lists, minimum)


def _batch_rows(device: str, max_length: int) -> int:
    """Return the rows of a batch on a type of device, for sequences of up to `max_length` tokens."""
    return max(1, min(GPU_BATCH_ROWS, GPU_BATCH_TOKENS // max_length)) if device == "cuda" else BATCH_ROWS


def _multilabel_values(model: Classifier, rows: np.ndarray, probabilities: bool, lists: bool) -> Iterator[list[object]]:
    for row, labels in zip(rows, model.predicted_labels(rows), strict=True):
        yield [_cell(model, labels, lists), *(row.tolist() if probabilities else [])]


def _label_values(
    model: Classifier, rows: np.ndarray, probabilities: bool, lists: bool, minimum: float | None
) -> Iterator[list[object]]:
    sets = [] if minimum is None else prediction_sets.label_sets(model.metadata, rows, minimum)
    for row, labels in zip_longest(rows, sets):
        best = int(row.argmax())
        cells = [_cell(model, labels, lists)] if labels else []
        yield [model.labels[best], float(row[best]), *cells, *(row.tolist() if probabilities else [])]


def _cell(model: Classifier, labels: list[str], lists: bool) -> object:
    return labels if lists else model.metadata.label_delimiter.join(labels)


def added_columns(answer: Answer, raw: RawBatch, columns: Columns) -> tuple[dict[str, list[object]], dict[int, str]]:
    """Return the added columns of a batch, and the reason for each row without a prediction, by its position.

    A row without a prediction has None in the added columns.
    """
    reasons = dict(raw.problems)
    texts: list[tuple[str, ...]] = []
    positions: list[int] = []
    empty = [None] * len(raw.rows)
    cells = [raw.columns.get(name, empty) for name in text_columns(raw, columns)]
    for position, row in enumerate(zip(*cells, strict=True)):
        if position in reasons:
            continue
        if not all(isinstance(value, str | None) for value in row):
            reasons[position] = "the text is not a string"
        elif not any(value and value.strip() for value in row):
            reasons[position] = "no text: missing or blank"
        else:
            texts.append(tuple(value or "" for value in row))
            positions.append(position)
    added: dict[str, list[object]] = {name: list(empty) for name in columns.added}
    for position, values in zip(positions, answer(texts), strict=True):
        for name, value in zip(added, values, strict=True):
            added[name][position] = value
    return added, reasons

"""What prediction adds to rows: columns of labels, probabilities or outputs beside those that are there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from txclf.core.errors import ConfigError, DataError
from txclf.data.records import RawBatch
from txclf.inference.load import load_model
from txclf.inference.metadata import BundleMetadata
from txclf.inference.seq2seq import Seq2Seq

Answer = Callable[[list[tuple[str, ...]]], Iterable[list[object]]]
"""Takes rows of text columns, gives for each the values that are added to it."""
BATCH_ROWS, GPU_BATCH_ROWS = 64, 512


@dataclass(frozen=True)
class Columns:
    """Of an output; the first rows of the input tell."""

    texts: list[str]
    """Of the input, that the model reads."""
    given: list[str]
    """Of the input."""
    added: dict[str, pa.DataType]
    """By the model: names that hide none of the input's."""
    style: str
    """The output's format."""
    delimiter: str
    """Between labels where a cell holds several, in csv and tsv."""


def columns(
    metadata: BundleMetadata, style: str, probabilities: bool, texts: Sequence[str] | None, first: RawBatch
) -> Columns:
    """What an output holds. Raises `ConfigError` for what the model or the format cannot give, `DataError` for a text
    column that is not there."""
    trained = metadata.text_columns
    chosen = list(texts or trained)
    if len(chosen) != len(trained):
        raise ConfigError(f"--text: {len(chosen)} column(s), the model reads {len(trained)} ({', '.join(trained)})")
    given = list(first.columns)
    found = Columns(chosen, given, {}, style, metadata.label_delimiter)
    text_columns(first, found)
    return Columns(chosen, given, _named(given, _adds(metadata, style, probabilities)), style, found.delimiter)


def _adds(metadata: BundleMetadata, style: str, probabilities: bool) -> dict[str, pa.DataType]:
    if not metadata.task_spec.has_labels:
        if probabilities:
            raise ConfigError("--probabilities: a `seq2seq` model has no labels")
        return {"output": pa.string()}
    each = {f"probability_{label}": pa.float64() for label in metadata.labels} if probabilities else {}
    if not metadata.task_spec.is_multilabel:
        return {"label": pa.string(), "probability": pa.float64(), **each}
    if style in ("jsonl", "parquet"):
        return {"labels": pa.list_(pa.string()), **each}
    broken = [label for label in metadata.labels if metadata.label_delimiter in label]
    if broken:
        delimiter = metadata.label_delimiter
        raise ConfigError(f"a {style} file cannot hold `{broken[0]}`, for it has a `{delimiter}`: write .jsonl")
    return {"labels": pa.string(), **each}


def _named(taken: Sequence[str], adds: dict[str, pa.DataType]) -> dict[str, pa.DataType]:
    named: dict[str, pa.DataType] = {}
    for name, kind in adds.items():
        while name in taken or name in named:
            name = f"predicted_{name}"
        named[name] = kind
    return named


def text_columns(raw: RawBatch, columns: Columns) -> list[str]:
    """The columns that hold the text here; of text files there is one. Raises `DataError` when one is not there."""
    wanted = ["text"] if raw.source.format == "text" else columns.texts
    missing = [name for name in wanted if name not in raw.columns]
    # Where no row of a later batch of JSON lines has the key, each of them is a bad row.
    later = raw.source.format == "jsonl" and raw.rows[0] > 1
    if missing and not later and len(raw.problems) < len(raw.rows):
        there = ", ".join(f"`{name}`" for name in raw.columns)
        raise DataError(f"`{raw.source.path}`: no column `{missing[0]}`, it has: {there}: name it by --text")
    return wanted


def kept(raw: RawBatch, columns: Columns) -> dict[str, list[object]]:
    """The input's columns, in the output's order. A JSON line may lack some, and bring more to JSON lines."""
    text_columns(raw, columns)
    jsonl = raw.source.format == "jsonl"
    absent = [name for name in columns.given if name not in raw.columns and not jsonl]
    new = [name for name in raw.columns if name not in columns.given]
    more = [name for name in new if columns.style != "jsonl" or name in columns.added]
    if absent or more:
        what = f"lacks the column `{absent[0]}`" if absent else f"has a column `{more[0]}` too many"
        raise DataError(f"`{raw.source.path}`: row {raw.rows[0]:,} on {what}: the first rows tell the output's columns")
    return {name: raw.columns.get(name) or [None] * len(raw.rows) for name in columns.given} | raw.columns


def load(folder: str, probabilities: bool, lists: bool) -> Answer:
    """A bundle as what it answers; `lists` says whether several labels are a list or joined."""
    model = load_model(folder)
    if isinstance(model, Seq2Seq):
        return lambda texts: ([output] for output in model.outputs(texts))
    classifier, metadata = model, model.metadata
    size = GPU_BATCH_ROWS if classifier.device.type == "cuda" else BATCH_ROWS

    def listed(texts: list[tuple[str, ...]]) -> Iterator[list[object]]:
        found = classifier.probabilities(texts, size)
        for row, labels in zip(found, classifier.predicted_labels(found), strict=True):
            cell = labels if lists else metadata.label_delimiter.join(labels)
            yield [cell, *(row.tolist() if probabilities else [])]

    def labelled(texts: list[tuple[str, ...]]) -> Iterator[list[object]]:
        for row in classifier.probabilities(texts, size):
            winner = int(row.argmax())
            yield [classifier.labels[winner], float(row[winner]), *(row.tolist() if probabilities else [])]

    return listed if classifier.is_multilabel else labelled


def answers(answer: Answer, raw: RawBatch, columns: Columns) -> tuple[dict[str, list[object]], dict[int, str]]:
    """The added columns, None for a row that has no text, and by position the reasons why."""
    reasons = dict(raw.problems)
    texts: list[tuple[str, ...]] = []
    places: list[int] = []
    none = [None] * len(raw.rows)
    cells = [raw.columns.get(name, none) for name in text_columns(raw, columns)]
    for place, row in enumerate(zip(*cells, strict=True)):
        if place in reasons:
            continue
        if not all(isinstance(value, str | None) for value in row):
            reasons[place] = "the text is not a string"
        elif not any(value and value.strip() for value in row):
            reasons[place] = "no text: missing or blank"
        else:
            texts.append(tuple(value or "" for value in row))
            places.append(place)
    found: dict[str, list[object]] = {name: list(none) for name in columns.added}
    for place, values in zip(places, answer(texts), strict=True):
        for name, value in zip(found, values, strict=True):
            found[name][place] = value
    return found, reasons

"""`txclf predict`: a bundle over files of any size. The input's columns and rows stay; label and probability are added.

A row that cannot be read keeps its place, with nulls, and is reported in `<out>.errors.jsonl`.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from txclf import bundle, storage
from txclf.bundle import Classifier
from txclf.data import records
from txclf.data.records import RawBatch
from txclf.data.sources import find_sources
from txclf.errors import ConfigError, DataError, StorageError
from txclf.seq2seq import Seq2Seq

BATCH_ROWS = 4096
Answer = Callable[[list[tuple[str, ...]]], Iterable[list[Any]]]
"""Takes rows of text columns, gives for each what is added to it."""
CODECS = {".gz": "gzip", ".zst": "zstd"}


@dataclass(frozen=True)
class Done:
    """What a prediction run did: rows = predicted + bad."""

    rows: int
    bad: int
    columns: list[str]
    """The columns that were added."""


def predict(
    model: str,
    inputs: Sequence[str],
    out: str,
    probabilities: bool = False,
    text_columns: Sequence[str] | None = None,
    show: Callable[[int], None] = lambda rows: None,
) -> Done:
    """Predicts every row of the inputs, in order, into one file; the ending of `out` says its format.

    Adds `label` and `probability` (`predicted_label` and so on where the input has such a column), and with
    `probabilities` a column for each label. A `multilabel` model adds `labels` instead: lists, the likeliest first, and
    joined by `data.label_delimiter` in csv and tsv. A `seq2seq` model adds `output`.

    Raises `ConfigError` for an output format it cannot write, `DataError` for inputs it cannot read. Nothing stands at
    `out` unless all of it does.
    """
    style, codec = _style(out)
    adds, trained, answer = _load(model, probabilities, style)
    sources = find_sources(inputs)
    columns = list(text_columns or trained)
    if len(columns) != len(trained):
        raise ConfigError(f"--text: {len(columns)} column(s), the model reads {len(trained)} ({', '.join(trained)})")
    errors: list[dict[str, Any]] = []
    rows = 0
    writer: Writer | None = None
    given: list[str] = []
    added: list[str] = []
    with ExitStack() as stack:
        stream = stack.enter_context(_whole(out, codec))
        for source in sources:
            for raw in records.read_raw(source, batch_rows=BATCH_ROWS):
                wanted = ["text"] if source.format == "text" else columns
                _check_text_columns(raw, wanted)
                if not writer:
                    given = list(raw.columns)
                    added = _names(given, adds)
                    kinds = dict(zip(added, adds.values(), strict=True))
                    writer = stack.enter_context(closing(_writer(style, stream, given, kinds, raw.schema)))
                predicted, reasons = _predict(answer, len(adds), raw, wanted)
                errors += [{"file": raw.files[i], "row": raw.rows[i], "reason": reasons[i]} for i in sorted(reasons)]
                kept = _columns(raw, given, added, style)
                try:
                    writer.write({**kept, **dict(zip(added, predicted, strict=True))})
                except (pa.ArrowException, OverflowError) as error:
                    raise DataError(
                        f"`{source.path}`: row {raw.rows[0]:,} on: a column changes type: {error}"
                    ) from None
                rows += len(raw.rows)
                show(rows)
        if writer is None:
            raise DataError(f"no row in {', '.join(inputs)}")
    if errors:
        lines = "".join(json.dumps(error, ensure_ascii=False) + "\n" for error in errors)
        storage.write_bytes(f"{out}.errors.jsonl", lines.encode("utf-8", "replace"))
    else:
        storage.remove_file(f"{out}.errors.jsonl")  # an earlier prediction's
    return Done(rows, len(errors), added)


def _check_text_columns(raw: RawBatch, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in raw.columns]
    # Where no row of a later batch of JSON lines has the key, each of them is a bad row.
    later = raw.source.format == "jsonl" and raw.rows[0] > 1
    if missing and not later and len(raw.problems) < len(raw.rows):
        there = ", ".join(f"`{name}`" for name in raw.columns)
        raise DataError(f"`{raw.source.path}`: no column `{missing[0]}`, it has: {there}: name it by --text")


def _columns(raw: RawBatch, given: Sequence[str], added: Sequence[str], style: str) -> dict[str, list[Any]]:
    """A batch's columns, those of the first batch (`given`) first. A JSON line may lack some and bring more to JSON."""
    absent = [name for name in given if name not in raw.columns and raw.source.format != "jsonl"]
    more = [name for name in raw.columns if name not in given and (style != "jsonl" or name in added)]
    if absent or more:
        what = f"lacks the column `{absent[0]}`" if absent else f"has a column `{more[0]}` too many"
        raise DataError(f"`{raw.source.path}`: row {raw.rows[0]:,} on {what}: the first rows tell the output's columns")
    return {name: raw.columns.get(name) or [None] * len(raw.rows) for name in given} | raw.columns


def _load(folder: str, probabilities: bool, style: str) -> tuple[dict[str, pa.DataType], list[str], Answer]:
    """The columns that a model adds to rows, the text columns that it was trained on, and what makes the one from the
    other."""
    description = bundle.describe(folder)
    if description.task == "seq2seq":
        if probabilities:
            raise ConfigError("--probabilities: a `seq2seq` model has no labels")
        model = Seq2Seq.load(folder)
        return (
            {"output": pa.string()},
            description.text_columns,
            lambda texts: ([output] for output in model.outputs(texts)),
        )
    classifier = Classifier.load(folder)

    each = {f"probability_{label}": pa.float64() for label in classifier.labels} if probabilities else {}
    if classifier.several:
        lists, delimiter = style in ("jsonl", "parquet"), description.label_delimiter
        broken = [label for label in classifier.labels if delimiter in label]
        if broken and not lists:
            raise ConfigError(f"a {style} file cannot hold `{broken[0]}`, for it has a `{delimiter}`: write .jsonl")

        def listed(texts: list[tuple[str, ...]]) -> Iterator[list[Any]]:
            found = classifier.probabilities(texts)
            for row, labels in zip(found, classifier.given(found), strict=True):
                yield [labels if lists else delimiter.join(labels), *(row.tolist() if probabilities else [])]

        kind = pa.list_(pa.string()) if lists else pa.string()
        return {"labels": kind, **each}, description.text_columns, listed

    def labelled(texts: list[tuple[str, ...]]) -> Iterator[list[Any]]:
        for row in classifier.probabilities(texts):
            winner = int(row.argmax())
            yield [classifier.labels[winner], float(row[winner]), *(row.tolist() if probabilities else [])]

    return {"label": pa.string(), "probability": pa.float64(), **each}, description.text_columns, labelled


def _predict(
    answer: Answer, count: int, raw: RawBatch, columns: Sequence[str]
) -> tuple[list[list[Any]], dict[int, str]]:
    """Columns of predictions, None for a row that has none, and the reasons why."""
    reasons = dict(raw.problems)
    texts: list[tuple[str, ...]] = []
    places: list[int] = []
    none = [None] * len(raw.rows)
    for place, row in enumerate(zip(*(raw.columns.get(name, none) for name in columns), strict=True)):
        if place in reasons:
            continue
        if not all(isinstance(value, str | None) for value in row):
            reasons[place] = "the text is not a string"
        elif not any(value and value.strip() for value in row):
            reasons[place] = "no text: missing or blank"
        else:
            texts.append(tuple(value or "" for value in row))
            places.append(place)
    answers: list[list[Any]] = [list(none) for _ in range(count)]
    for place, found in zip(places, answer(texts), strict=True):
        for values, value in zip(answers, found, strict=True):
            values[place] = value
    return answers, reasons


def _names(taken: Sequence[str] | dict[str, Any], adds: Iterable[str]) -> list[str]:
    """Names of the added columns, which never hide one of the input's."""
    names: list[str] = []
    for name in adds:
        while name in taken or name in names:
            name = f"predicted_{name}"
        names.append(name)
    return names


def _style(out: str) -> tuple[str, str | None]:
    stem, ending = os.path.splitext(out)
    codec = CODECS.get(ending)
    if codec:
        ending = os.path.splitext(stem)[1]
    if ending not in (".csv", ".tsv", ".jsonl", ".parquet") or (codec and ending == ".parquet"):
        raise ConfigError(f"`{out}`: end the output in .csv, .tsv or .jsonl (also .gz or .zst), or in .parquet")
    return ending[1:], codec


@contextmanager
def _whole(out: str, codec: str | None) -> Iterator[Any]:
    """A stream to a file that appears under its name only when the block ends well."""
    filesystem, inner = storage.resolve(out)
    folder, name = inner.rsplit("/", 1)
    part = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}"
    try:
        filesystem.create_dir(folder or "/", recursive=True)
        try:
            with filesystem.open_output_stream(part, compression=codec) as stream:
                yield stream
            filesystem.move(part, inner)
        except BaseException:
            with suppress(OSError):
                filesystem.delete_file(part)
            raise
    except OSError as error:
        raise StorageError(f"`{out}`: cannot be written: {error.strerror or error}") from error


class Writer(Protocol):
    """Writes columns batch by batch."""

    def write(self, columns: dict[str, list[Any]]) -> None: ...

    def close(self) -> None: ...


def _writer(
    style: str, stream: Any, inputs: list[str], added: dict[str, pa.DataType], schema: pa.Schema | None
) -> Writer:
    if style == "parquet":
        return ParquetWriter(stream, inputs, added, schema)
    if style == "jsonl":
        return JsonWriter(stream)
    return CsvWriter(stream, [*inputs, *added], "\t" if style == "tsv" else ",")


class CsvWriter:
    """csv, or tsv as it is read here: a quote is an ordinary character, but around a cell with tabs or line ends."""

    def __init__(self, stream: Any, names: list[str], delimiter: str) -> None:
        self.stream, self.names, self.delimiter = stream, names, delimiter
        self._rows([names])

    def write(self, columns: dict[str, list[Any]]) -> None:
        self._rows(zip(*(columns[name] for name in self.names), strict=True))

    def _rows(self, rows: Any) -> None:
        text = io.StringIO()
        if self.delimiter == ",":
            csv.writer(text, lineterminator="\n").writerows(rows)
        else:
            text.writelines("\t".join(map(_tsv_cell, row)) + "\n" for row in rows)
        self.stream.write(text.getvalue().encode())

    def close(self) -> None:
        pass


def _tsv_cell(value: object) -> str:
    text = "" if value is None else str(value)
    return '"' + text.replace('"', '""') + '"' if re.search(r"[\t\r\n]", text) else text


class JsonWriter:
    """A JSON object a line; values that JSON lacks (dates, bytes) as text."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, columns: dict[str, list[Any]]) -> None:
        names = list(columns)
        lines = (
            json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False, default=str)
            for row in zip(*columns.values(), strict=True)
        )
        self.stream.write("".join(line + "\n" for line in lines).encode())

    def close(self) -> None:
        pass


class ParquetWriter:
    """Parquet with the input's own types where it had them, else those of the first batch."""

    def __init__(self, stream: Any, inputs: list[str], added: dict[str, pa.DataType], schema: pa.Schema | None) -> None:
        self.stream, self.inputs, self.added, self.schema = stream, inputs, added, schema
        self.writer: pq.ParquetWriter | None = None

    def write(self, columns: dict[str, list[Any]]) -> None:
        if self.writer is None:
            fields = [
                self.schema.field(name)
                if self.schema is not None
                # A column that starts with nulls alone is taken for text.
                else pa.field(name, kind if (kind := pa.array(columns[name]).type) != pa.null() else pa.string())
                for name in self.inputs
            ]
            fields += [pa.field(name, kind) for name, kind in self.added.items()]
            self.schema = pa.schema(fields)
            self.writer = pq.ParquetWriter(self.stream, self.schema, compression="zstd")
        assert self.schema is not None
        arrays = [pa.array(columns[field.name], field.type) for field in self.schema]
        self.writer.write_table(pa.table(arrays, schema=self.schema))

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()

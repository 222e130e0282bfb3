"""Columns of the output: names, types, input columns and added values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.helpers.prediction import with_quantiles
from tests.helpers.serving import untrained
from txclf import Classifier, Seq2Seq
from txclf.core.errors import ConfigError, DataError
from txclf.data.records import RawBatch
from txclf.data.sources import Source
from txclf.inference import bundle
from txclf.inference.metadata import BundleMetadata
from txclf.prediction.columns import (
    Columns,
    added_columns,
    input_columns,
    load_answer,
    output_columns,
    text_columns,
)


def batch(columns: dict[str, list[Any]], kind: str = "csv", first_row: int = 1) -> RawBatch:
    """Return rows of a file `in.KIND`."""
    count = len(next(iter(columns.values())))
    rows = list(range(first_row, first_row + count))
    return RawBatch(Source(f"in.{kind}", kind), rows, [f"in.{kind}"] * count, columns, {})


def columns_of(metadata: BundleMetadata, first: RawBatch, style: str = "csv", **options: Any) -> Columns:
    """Return the columns of an output, without probabilities and with the text columns of the model."""
    return output_columns(metadata, first, **{"style": style, "probabilities": False, "texts": None, **options})


@pytest.fixture
def metadata(tiny_bundle: str) -> BundleMetadata:
    """Read the metadata of the tiny bundle."""
    return bundle.read_metadata(tiny_bundle)


def test_output_columns_of_a_classifier_are_label_and_probability(metadata: BundleMetadata) -> None:
    columns = columns_of(metadata, batch({"id": ["1"], "text": ["fox"]}))
    assert columns.inputs == ["id", "text"]
    assert columns.added == {"label": pa.string(), "probability": pa.float64()}
    with_each = columns_of(metadata, batch({"text": ["fox"]}), probabilities=True)
    assert list(with_each.added)[2:] == ["probability_low", "probability_mid", "probability_high"]


def test_output_columns_never_have_the_name_of_an_input_column(metadata: BundleMetadata) -> None:
    columns = columns_of(metadata, batch({"text": ["fox"], "label": ["a"], "predicted_label": ["b"]}))
    assert list(columns.added) == ["predicted_predicted_label", "probability"]


def test_output_columns_of_multilabel_are_lists_where_the_format_has_them(tmp_path: Path) -> None:
    metadata = bundle.read_metadata(untrained(tmp_path, task="multilabel"))
    assert columns_of(metadata, batch({"text": ["fox"]}), "parquet").added == {"labels": pa.list_(pa.string())}
    assert columns_of(metadata, batch({"text": ["fox"]}), "csv").added == {"labels": pa.string()}
    odd = metadata.model_copy(update={"labels": ["low", "a,b"]})
    with pytest.raises(ConfigError, match=r"`a,b`: the label contains the delimiter `,`, .* End --out in \.jsonl"):
        columns_of(odd, batch({"text": ["fox"]}), "tsv")


def test_output_columns_of_seq2seq_are_outputs_without_probabilities(tmp_path: Path) -> None:
    metadata = bundle.read_metadata(untrained(tmp_path, task="seq2seq", data={"target": "target"}))
    assert columns_of(metadata, batch({"text": ["fox"]})).added == {"output": pa.string()}
    with pytest.raises(ConfigError, match="--probabilities: a `seq2seq` model has no labels"):
        columns_of(metadata, batch({"text": ["fox"]}), probabilities=True)


def test_output_columns_wrong_number_of_texts_raises(metadata: BundleMetadata) -> None:
    with pytest.raises(ConfigError, match=r"--text-column: 2 column\(s\), but the model reads 1 \(text\)"):
        columns_of(metadata, batch({"a": ["fox"], "b": ["dog"]}), texts=["a", "b"])


def test_text_columns_missing_column_raises_unless_later_json_lines(metadata: BundleMetadata) -> None:
    columns = columns_of(metadata, batch({"text": ["fox"]}, "jsonl"))
    with pytest.raises(DataError, match=r"`in\.jsonl`: no column `text`, it has `body`"):
        text_columns(batch({"body": ["fox"]}, "jsonl"), columns)
    assert text_columns(batch({"body": ["fox"]}, "jsonl", first_row=9), columns) == ["text"]


def test_input_columns_keep_the_order_of_the_first_rows(metadata: BundleMetadata) -> None:
    columns = columns_of(metadata, batch({"id": ["1"], "text": ["fox"]}))
    assert list(input_columns(batch({"text": ["dog"], "id": ["2"]}), columns).items()) == [
        ("id", ["2"]),
        ("text", ["dog"]),
    ]


@pytest.mark.parametrize(
    ("later", "message"),
    [
        ({"text": ["fox"]}, r"no column `id` from row 5 on\. Give all inputs the columns"),
        ({"text": ["fox"], "id": ["1"], "more": ["2"]}, "an additional column `more` from row 5 on"),
    ],
)
def test_input_columns_changed_columns_raise(
    metadata: BundleMetadata, later: dict[str, list[Any]], message: str
) -> None:
    columns = columns_of(metadata, batch({"id": ["1"], "text": ["fox"]}))
    with pytest.raises(DataError, match=message):
        input_columns(batch(later, first_row=5), columns)


def test_added_columns_have_nulls_and_reasons_for_bad_rows(metadata: BundleMetadata) -> None:
    raw = batch({"text": ["fox", None, 7, " ", "dog"]}, "jsonl")
    columns = columns_of(metadata, raw, "jsonl")
    asked: list[tuple[str, ...]] = []

    def answer(texts: list[tuple[str, ...]]) -> list[list[object]]:
        asked.extend(texts)
        return [[text, len(text)] for (text,) in texts]

    added, reasons = added_columns(answer, raw, columns)
    assert asked == [("fox",), ("dog",)]
    assert added == {"label": ["fox", None, None, None, "dog"], "probability": [3, None, None, None, 3]}
    assert reasons == {
        1: "no text: missing or blank",
        2: "the text is not a string",
        3: "no text: missing or blank",
    }


def test_load_answer_of_a_classifier_gives_label_and_probabilities(tiny_bundle: str) -> None:
    (prediction,) = Classifier.load(tiny_bundle)(["fox"])
    (plain,) = load_answer(tiny_bundle, probabilities=False, lists=True)([("fox",)])
    assert plain == [prediction.label, pytest.approx(prediction.probability)]
    (full,) = load_answer(tiny_bundle, probabilities=True, lists=True)([("fox",)])
    assert full[2:] == pytest.approx(list(prediction.probabilities.values()))


@pytest.mark.parametrize(
    ("device", "max_length", "rows"),
    [("cuda", 64, 512), ("cuda", 256, 512), ("cuda", 8192, 16), ("cuda", 65_536, 2), ("cpu", 8192, 64)],
)
def test_load_answer_takes_fewer_long_texts_at_once_on_a_gpu(
    tiny_bundle: str, monkeypatch: pytest.MonkeyPatch, device: str, max_length: int, rows: int
) -> None:
    model, taken = Classifier.load(tiny_bundle), list[int]()

    def probabilities(texts: list[tuple[str, ...]], batch_size: int) -> np.ndarray:
        taken.append(batch_size)
        return np.full((len(texts), len(model.labels)), 0.5)

    model.device, model.probabilities = torch.device(device), probabilities  # type: ignore[assignment]
    model.metadata = model.metadata.model_copy(update={"max_length": max_length})
    monkeypatch.setattr("txclf.prediction.columns.load_model", lambda folder: model)
    list(load_answer(tiny_bundle, probabilities=False, lists=True)([("fox",)]))
    assert taken == [rows]


def test_load_answer_of_multilabel_joins_the_labels_for_formats_without_lists(tmp_path: Path) -> None:
    folder = untrained(tmp_path, task="multilabel")
    (prediction,) = Classifier.load(folder)(["fox"])
    (listed,) = load_answer(folder, probabilities=False, lists=True)([("fox",)])
    assert listed == [prediction.labels]
    (joined,) = load_answer(folder, probabilities=True, lists=False)([("fox",)])
    assert joined == [",".join(prediction.labels), *map(pytest.approx, prediction.probabilities.values())]


def test_load_answer_of_seq2seq_gives_outputs(tmp_path: Path) -> None:
    folder = untrained(tmp_path, task="seq2seq", data={"target": "target"})
    answers = load_answer(folder, probabilities=False, lists=False)([("fox",), ("dog",)])
    assert list(answers) == [[output] for output in Seq2Seq.load(folder)(["fox", "dog"])]


def test_output_columns_with_coverage_are_lists_where_the_format_has_them(tiny_bundle: str, tmp_path: Path) -> None:
    metadata = bundle.read_metadata(with_quantiles(tiny_bundle, tmp_path, [0.5] * 19))
    rows = batch({"text": ["fox"]})
    for style, kind in (("csv", pa.string()), ("jsonl", pa.list_(pa.string()))):
        columns = columns_of(metadata, rows, style, coverage=0.9, probabilities=True)
        assert list(columns.added)[:4] == ["label", "probability", "labels_in_set", "probability_low"]
        assert columns.added["labels_in_set"] == kind
    comma = metadata.model_copy(update={"labels": ["a,b", "c", "d"]})
    assert list(columns_of(comma, rows).added) == ["label", "probability"]
    with pytest.raises(ConfigError, match=r"`a,b`: the label contains the delimiter `,`.* End --out in \.jsonl"):
        columns_of(comma, rows, coverage=0.9)
    with pytest.raises(ConfigError, match=r"^--coverage: 2 is out of range"):
        columns_of(metadata, rows, coverage=2)


def test_load_answer_with_coverage_gives_the_prediction_set(tiny_bundle: str, tmp_path: Path) -> None:
    folder = with_quantiles(tiny_bundle, tmp_path, [0.5] * 19)
    for lists in (True, False):
        answer = load_answer(folder, probabilities=True, lists=lists, coverage=1.0)
        ((label, _, labels, *probabilities),) = answer([("fox",)])
        named = dict(zip(["low", "mid", "high"], map(float, probabilities), strict=True))  # type: ignore[arg-type]
        expected = sorted(named, key=lambda name: -named[name])
        assert labels == (expected if lists else ",".join(expected))
        assert label == expected[0]
        assert list(answer([])) == []

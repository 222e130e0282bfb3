"""Prediction of files: formats, kept columns and rows, bad rows, several inputs."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
import os
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.prediction import ROWS, Row, Stop, put, stop
from txclf.core.errors import DataError
from txclf.data import records
from txclf.data.sources import Source
from txclf.inference.classifier import Classifier
from txclf.prediction import predict
from txclf.prediction.predict import PredictionSummary

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": lambda content: pa.compress(content, "zstd", asbytes=True),
}
ADDED = ["label", "probability"]


def read(path: Path) -> list[Row]:
    """Return the rows of an output file."""
    source = Source(str(path), path.name.partition(".")[2].partition(".")[0])
    rows: list[Row] = []
    for batch in records.read_raw(source):
        assert not batch.problems
        rows += [dict(zip(batch.columns, values, strict=True)) for values in zip(*batch.columns.values(), strict=True)]
    return rows


def errors(out: Path) -> list[Row]:
    """Return the reported bad rows of an output."""
    return [json.loads(line) for line in Path(f"{out}.errors.jsonl").read_text().splitlines()]


def expected(bundle: str, rows: Sequence[Row], ending: str) -> list[Row]:
    """Return the rows with the predictions of the model."""
    predictions = Classifier.load(bundle)([row["text"] for row in rows])
    typed = str if ending in ("csv", "tsv") else float
    return [
        {**row, "label": prediction.label, "probability": typed(prediction.probability)}
        for row, prediction in zip(rows, predictions, strict=True)
    ]


def close(found: Sequence[Row], wanted: Sequence[Row]) -> bool:
    """Return True if rows are equal up to rounding of the probability."""

    def split(rows: Sequence[Row]) -> tuple[list[Row], list[float]]:
        rest = [{name: value for name, value in row.items() if name != "probability"} for row in rows]
        return rest, [float(row["probability"]) for row in rows]

    return split(found)[0] == split(wanted)[0] and split(found)[1] == pytest.approx(split(wanted)[1], abs=1e-6)


@pytest.mark.parametrize("out", ["csv", "csv.gz", "csv.zst", "tsv", "tsv.gz", "jsonl", "jsonl.zst", "parquet"])
@pytest.mark.parametrize("into", ["csv", "tsv", "jsonl", "parquet", "csv.gz", "tsv.zst", "jsonl.gz"])
def test_predict_every_format_into_every_other(tmp_path: Path, tiny_bundle: str, into: str, out: str) -> None:
    done = predict.predict(tiny_bundle, [put(tmp_path / f"in.{into}", ROWS)], out=str(tmp_path / f"out.{out}"))
    assert done == PredictionSummary(rows=4, bad=0, columns=ADDED)
    found = read(tmp_path / f"out.{out}")
    assert [list(row) for row in found] == [["id", "text", "note", *ADDED]] * 4
    assert close(found, expected(tiny_bundle, ROWS, out))
    assert sorted(os.listdir(tmp_path)) == sorted([f"in.{into}", f"out.{out}"])


def test_predict_folder_of_texts_keeps_their_labels(tmp_path: Path, tiny_bundle: str) -> None:
    for name in ("pos/2", "pos/1", "neg/3"):
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / f"{name}.txt").write_text(f"fox\nnumber {name}")
    done = predict.predict(tiny_bundle, [str(tmp_path / "texts")], out=str(tmp_path / "out.tsv"))
    assert done.columns == ["predicted_label", "probability"]
    lines = list(csv.reader(io.StringIO((tmp_path / "out.tsv").read_bytes().decode()), dialect="excel-tab"))
    assert lines[0] == ["text", "label", "predicted_label", "probability"]
    assert [line[:2] for line in lines[1:]] == [
        ["fox\nnumber neg/3", "neg"],
        ["fox\nnumber pos/1", "pos"],
        ["fox\nnumber pos/2", "pos"],
    ]


def test_predict_parquet_keeps_its_types(tmp_path: Path, tiny_bundle: str) -> None:
    table = pa.table(
        {
            "text": pa.array(["fox", "dog"], pa.large_string()),
            "day": pa.array([datetime.date(2020, 1, 2), None]),
            "at": pa.array([1, None], pa.timestamp("ms", "UTC")),
            "price": pa.array([Decimal("1.20"), None]),
            "kind": pa.array(["a", "b"]).dictionary_encode(),
            "nano": pa.array([1, None], pa.timestamp("ns", "Europe/Berlin")),
            "map": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int8())),
            "raw": pa.array([b"\xff", None]),
            "small": pa.array([1, None], pa.int8()),
            "half": pa.array([1.5, None], pa.float32()),
            "big": pa.array([2**64 - 1, None], pa.uint64()),
            "list": pa.array([[1, None], None], pa.list_(pa.int16())),
            "more": pa.array([{"a": 1}, None]),
            "none": pa.nulls(2),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    predict.predict(tiny_bundle, [str(tmp_path / "in.parquet")], out=str(tmp_path / "out.parquet"))
    found = pq.read_table(tmp_path / "out.parquet")
    names = table.column_names[:-1]
    assert found.select(names).equals(table.select(names))
    assert found.schema.field("none").type == pa.string()
    assert found.schema.types[-2:] == [pa.string(), pa.float64()]
    predict.predict(tiny_bundle, [str(tmp_path / "in.parquet")], out=str(tmp_path / "out.jsonl"))
    (first, second) = read(tmp_path / "out.jsonl")
    assert (first["day"], first["price"], first["list"], first["more"]) == ("2020-01-02", "1.20", [1, None], {"a": 1})
    assert (second["day"], second["small"]) == (None, None)


def test_predict_json_keeps_its_types_and_parquet_infers_them(tmp_path: Path, tiny_bundle: str) -> None:
    rows: list[Row] = [
        {"text": "fox", "n": 1, "x": 0.5, "b": True, "none": None},
        {"text": "dog", "n": None, "x": 2, "b": False},
    ]
    path = put(tmp_path / "in.jsonl", rows)
    predict.predict(tiny_bundle, [path], out=str(tmp_path / "out.jsonl"))
    assert [{name: row[name] for name in rows[0]} for row in read(tmp_path / "out.jsonl")] == [
        rows[0],
        {**rows[1], "none": None},
    ]
    predict.predict(tiny_bundle, [path], out=str(tmp_path / "out.parquet"))
    types = [pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.string(), pa.string(), pa.float64()]
    assert pq.read_schema(tmp_path / "out.parquet").types == types


@pytest.mark.parametrize("text", ['"open', 'a "b" c', '""', "a'b", "a\\tb", " spaced "])
def test_predict_tsv_keeps_quotes_and_spaces(tmp_path: Path, tiny_bundle: str, text: str) -> None:
    rows = [{"text": text, "note": '"'}]
    predict.predict(tiny_bundle, [put(tmp_path / "in.tsv", rows)], out=str(tmp_path / "out.tsv"))
    (found,) = read(tmp_path / "out.tsv")
    assert {name: found[name] for name in rows[0]} == rows[0]


@pytest.mark.parametrize("out", ["csv", "tsv.gz"])
def test_predict_texts_with_line_ends_come_back(tmp_path: Path, tiny_bundle: str, out: str) -> None:
    rows = [{"text": 'one\ttwo\nthree "four"', "note": "a\rb"}, {"text": '"', "note": "c\r\n"}]
    predict.predict(tiny_bundle, [put(tmp_path / "in.jsonl", rows)], out=str(tmp_path / f"out.{out}"))
    again = tmp_path / "again.jsonl"
    predict.predict(tiny_bundle, [str(tmp_path / f"out.{out}")], out=str(again))
    assert [{name: row[name] for name in ("text", "note")} for row in read(again)] == rows


@pytest.mark.parametrize("out", ["csv", "jsonl", "parquet"])
def test_predict_probabilities_adds_a_column_per_label(tmp_path: Path, tiny_bundle: str, out: str) -> None:
    path = put(tmp_path / "in.csv", ROWS)
    done = predict.predict(tiny_bundle, [path], out=str(tmp_path / f"out.{out}"), probabilities=True)
    each = ["probability_low", "probability_mid", "probability_high"]
    assert done.columns == [*ADDED, *each]
    for row, prediction in zip(
        read(tmp_path / f"out.{out}"), Classifier.load(tiny_bundle)([row["text"] for row in ROWS]), strict=True
    ):
        values = [float(row[name]) for name in each]
        assert sum(values) == pytest.approx(1.0, abs=1e-6)
        assert values == pytest.approx(list(prediction.probabilities.values()), abs=1e-6)
        assert row["label"] == ["low", "mid", "high"][values.index(max(values))]
        assert float(row["probability"]) == max(values)


@pytest.mark.parametrize(
    ("names", "added"),
    [
        (["text"], ["label", "probability"]),
        (["text", "label"], ["predicted_label", "probability"]),
        (["probability", "text", "label"], ["predicted_label", "predicted_probability"]),
        (["text", "label", "predicted_label"], ["predicted_predicted_label", "probability"]),
    ],
)
def test_predict_added_columns_never_hide_input_columns(
    tmp_path: Path, tiny_bundle: str, names: list[str], added: list[str]
) -> None:
    rows = [{name: f"{name} {number}" for name in names} for number in range(3)]
    done = predict.predict(tiny_bundle, [put(tmp_path / "in.csv", rows)], out=str(tmp_path / "out.csv"))
    assert done.columns == added
    found = read(tmp_path / "out.csv")
    assert [list(row) for row in found] == [[*names, *added]] * 3
    assert [{name: row[name] for name in names} for row in found] == rows


def test_predict_text_columns_names_the_text(tmp_path: Path, tiny_bundle: str) -> None:
    rows = [{"text": "fox", "body": "dog"}, {"text": "wizards", "body": "the lazy dog"}]
    path = put(tmp_path / "in.csv", rows)
    predict.predict(tiny_bundle, [path], out=str(tmp_path / "out.csv"), text_columns=["body"])
    predictions = Classifier.load(tiny_bundle)([row["body"] for row in rows])
    assert [float(row["probability"]) for row in read(tmp_path / "out.csv")] == pytest.approx(
        [prediction.probability for prediction in predictions], abs=1e-6
    )


@pytest.mark.parametrize("out", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("batch_rows", [1, 2, 4096])
def test_predict_bad_rows_keep_their_position(tmp_path: Path, tiny_bundle: str, out: str, batch_rows: int) -> None:
    content = b"text,n\nfox,1\nshort\ncaf\xe9,3\n ,4\ndog,5\n"
    path = tmp_path / f"out.{out}"
    done = predict.predict(tiny_bundle, [put(tmp_path / "in.csv", content)], out=str(path), chunk_rows=batch_rows)
    assert (done.rows, done.bad) == (5, 3)
    empty = "" if out in ("csv", "tsv") else None
    found = read(path)
    assert [row["n"] for row in found] == ["1", empty, empty, "4", "5"]
    assert [row["text"] for row in found] == ["fox", empty, empty, " ", "dog"]
    assert [row["label"] in ("low", "mid", "high") for row in found] == [True, False, False, False, True]
    assert [row["probability"] for row in found][1:4] == [empty] * 3
    assert errors(path) == [
        {"file": str(tmp_path / "in.csv"), "row": 2, "reason": "expected 2 fields, found 1"},
        {"file": str(tmp_path / "in.csv"), "row": 3, "reason": "not valid UTF-8"},
        {"file": str(tmp_path / "in.csv"), "row": 4, "reason": "no text: missing or blank"},
    ]


def test_predict_texts_that_are_not_strings_are_bad_rows(tmp_path: Path, tiny_bundle: str) -> None:
    lines = '{"text": 5, "n": 1}\n{"text": null, "n": 2}\n[]\n{"n": 4}\n{"text": "fox", "n": 5}\n'
    path = tmp_path / "out.jsonl"
    assert predict.predict(tiny_bundle, [put(tmp_path / "in.jsonl", lines)], out=str(path)).bad == 4
    assert [row["n"] for row in read(path)] == [1, 2, None, 4, 5]
    assert [error["reason"] for error in errors(path)] == [
        "the text is not a string",
        "no text: missing or blank",
        "JSON of type list, expected an object",
        "no text: missing or blank",
    ]


def test_predict_removes_the_report_of_an_earlier_prediction(tmp_path: Path, tiny_bundle: str) -> None:
    path = tmp_path / "in.csv"
    for content, bad in [("text,n\nfox\n", 1), ("text,n\nfox,1\n", 0)]:
        assert predict.predict(tiny_bundle, [put(path, content)], out=str(tmp_path / "out.csv")).bad == bad
        assert Path(f"{tmp_path}/out.csv.errors.jsonl").exists() == bool(bad)


def test_predict_only_bad_rows_writes_nulls(tmp_path: Path, tiny_bundle: str) -> None:
    done = predict.predict(
        tiny_bundle, [put(tmp_path / "in.csv", "text,n\n,1\n,2\n")], out=str(tmp_path / "out.parquet")
    )
    assert (done.rows, done.bad) == (2, 2)
    assert pq.read_table(tmp_path / "out.parquet")["label"].to_pylist() == [None, None]


GROWING: list[list[Any]] = [[[1, 2], {"a": 1}, None], [[0.75, 2], {"a": 2, "b": "new"}, 2**53], [[], None, 0.5]]


def test_predict_values_whose_types_grow_come_back_also_when_resumed(tmp_path: Path, tiny_bundle: str) -> None:
    rows: list[Row] = [{"text": "fox", "list": a, "object": b, "number": c} for a, b, c in GROWING]
    path, out = put(tmp_path / "in.jsonl", rows), tmp_path / "out.parquet"
    with pytest.raises(Stop):
        predict.predict(tiny_bundle, [path], out=str(out), chunk_rows=1, on_progress=stop)
    assert predict.predict(tiny_bundle, [path], out=str(out), chunk_rows=1).resumed_rows == 1
    found = pq.read_table(out)
    assert found["list"].to_pylist() == [row["list"] for row in rows]
    assert found["object"].to_pylist() == [{"a": 1, "b": None}, {"a": 2, "b": "new"}, None]
    assert found["number"].to_pylist() == [None, 2**53, 0.5]


def test_predict_parquet_inputs_get_the_wider_type_or_are_refused_before_any_row(
    tmp_path: Path, tiny_bundle: str
) -> None:
    def write(name: str, values: pa.Array) -> str:
        pq.write_table(pa.table({"text": ["fox"] * len(values), "v": values}), tmp_path / name)
        return str(tmp_path / name)

    half, double = write("half.parquet", pa.array([0.5], pa.float32())), write("double.parquet", pa.array([1.1]))
    predict.predict(tiny_bundle, [half, double], out=str(tmp_path / "out.parquet"))
    assert pq.read_table(tmp_path / "out.parquet")["v"].to_pylist() == [0.5, 1.1]
    day = write("day.parquet", pa.array([datetime.date(2020, 1, 2)]))
    seen: list[int] = []
    with pytest.raises(DataError, match=r"day\.parquet`: column `v`: date32\[day\] here, but float before"):
        predict.predict(tiny_bundle, [half, day], out=str(tmp_path / "no.parquet"), on_progress=seen.append)
    assert not seen
    assert not (tmp_path / "no.parquet").exists()


@pytest.mark.parametrize("out", ["csv", "jsonl", "parquet"])
def test_predict_several_inputs_become_one_output_in_order(tmp_path: Path, tiny_bundle: str, out: str) -> None:
    first = put(tmp_path / "b.csv", ROWS)
    again = [dict(reversed(row.items())) for row in ROWS]  # the same columns in another order
    second, third = put(tmp_path / "a.jsonl", again), put(tmp_path / "c.csv", "id,text,note\n")
    shown: list[int] = []
    path = tmp_path / f"out.{out}"
    done = predict.predict(tiny_bundle, [first, second, third], out=str(path), on_progress=shown.append, chunk_rows=3)
    assert done == PredictionSummary(rows=8, bad=0, columns=ADDED)
    assert shown == [0, 3, 4, 7, 8]
    found = read(path)
    assert [list(row) for row in found] == [["id", "text", "note", *ADDED]] * 8
    assert close(found, expected(tiny_bundle, ROWS * 2, out))


@pytest.mark.parametrize("out", ["csv", "jsonl", "parquet"])
def test_predict_json_lines_may_lack_keys(tmp_path: Path, tiny_bundle: str, out: str) -> None:
    lines = '{"text": "fox", "n": "1"}\n{"text": "dog"}\n{"text": "fox"}\n{"text": "dog"}\n{"n": "5"}\n'
    path = tmp_path / f"out.{out}"
    assert predict.predict(tiny_bundle, [put(tmp_path / "in.jsonl", lines)], out=str(path), chunk_rows=2).bad == 1
    empty = "" if out == "csv" else None
    assert [row["n"] for row in read(path)] == ["1", empty, empty, empty, "5"]
    assert [(error["row"], error["reason"]) for error in errors(path)] == [(5, "no text: missing or blank")]


def test_predict_json_lines_may_add_keys_to_json_lines(tmp_path: Path, tiny_bundle: str) -> None:
    path = put(tmp_path / "in.jsonl", [{"text": "fox"}, {"text": "dog", "n": 2}])
    predict.predict(tiny_bundle, [path], out=str(tmp_path / "out.jsonl"), chunk_rows=1)
    assert [line.get("n") for line in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())] == [None, 2]


def test_predict_file_uris_and_new_folder_work(tmp_path: Path, tiny_bundle: str) -> None:
    path = put(tmp_path / "in.csv", "text,n\nfox,1\ndog\n")
    done = predict.predict(f"file://{tiny_bundle}", [f"file://{path}"], out=f"file://{tmp_path}/new/folder/out.csv")
    assert (done.rows, done.bad) == (2, 1)
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == ["out.csv", "out.csv.errors.jsonl"]


def test_predict_input_may_be_the_output(tmp_path: Path, tiny_bundle: str) -> None:
    path = put(tmp_path / "in.csv", ROWS)
    predict.predict(tiny_bundle, [path], out=path)
    predict.predict(tiny_bundle, [path], out=path)
    assert list(read(tmp_path / "in.csv")[0]) == [
        "id",
        "text",
        "note",
        *ADDED,
        "predicted_label",
        "predicted_probability",
    ]


def test_summary_in_a_notebook_shows_its_numbers_and_escaped_columns() -> None:
    shown = PredictionSummary(rows=1234, bad=5, columns=["label", "probability_<b>"])._repr_html_()
    assert "<td>rows</td><td>1,234</td>" in shown
    assert "probability_&lt;b&gt;" in shown


def test_predict_other_encoding_and_delimiter_give_the_same_predictions(tmp_path: Path, tiny_bundle: str) -> None:
    (tmp_path / "in.csv").write_bytes("text;n\nein schöner fox;1\na dog;2\n".encode("latin-1"))
    inputs, out = [f"{tmp_path}/in.csv"], tmp_path / "out.csv"
    with pytest.raises(DataError, match=r"no column `text`.*--encoding latin-1.*--delimiter \";\""):
        predict.predict(tiny_bundle, inputs, out=str(out))
    done = predict.predict(tiny_bundle, inputs, out=str(out), encoding="latin-1", delimiter=";")
    assert (done.rows, done.bad, done.advice) == (2, 0, None)
    assert read(out) == expected(
        tiny_bundle, [{"text": "ein schöner fox", "n": "1"}, {"text": "a dog", "n": "2"}], "csv"
    )
    done = predict.predict(tiny_bundle, inputs, out=str(out), text_columns=["text"], delimiter=";")
    assert done.bad == 1
    assert done.advice == (
        "It looks like latin-1: set `data.encoding: latin-1` "
        "(predict, drift: --encoding latin-1; evaluate: convert the file)."
    )

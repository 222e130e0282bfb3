"""Predictions that fail: the error names the problem, and no file is left behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import txclf
from tests.helpers.prediction import ROWS, put
from tests.helpers.serving import untrained
from txclf.cli import predict as predict_command
from txclf.core.errors import BundleError, ConfigError, DataError, StorageError
from txclf.prediction import predict

TWO = [{"text": "fox", "n": 1}, {"text": "dog", "n": 2}]


CLASH = [{"text": "fox"}, {"text": "dog", "label": "mine"}]


@pytest.mark.parametrize(
    ("inputs", "out", "error", "message"),
    [
        (
            {"a.csv": "text\nfox\n"},
            "out.txt",
            ConfigError,
            r"out\.txt`: not a format that can be written\. Use \.csv, \.tsv or \.jsonl",
        ),
        ({"a.csv": "text\nfox\n"}, "out", ConfigError, "not a format that can be written"),
        ({"a.csv": "text\nfox\n"}, "out.csv.bz2", ConfigError, "not a format that can be written"),
        ({"a.csv": "text\nfox\n"}, "out.parquet.gz", ConfigError, r"or \.parquet"),
        ({"a.csv": "text\nfox\n"}, "a.csv/out.csv", StorageError, r"a\.csv/out\.csv`: cannot be written: "),
        ({"a.csv": "text\nfox\n"}, "model.csv", StorageError, r"model\.csv`: cannot be written: "),
        (
            {"a.csv": "body,n\nfox,1\n"},
            "out.csv",
            DataError,
            r"a\.csv`: no column `text`, it has `body`, `n`\. Name the",
        ),
        ({"a.jsonl": '{"body": "fox"}\n'}, "out.csv", DataError, r"a\.jsonl`: no column `text`, it has `body`"),
        ({"a.csv": "text,n\n"}, "out.csv", DataError, r"no row in .*a\.csv"),
        ({"a.csv": ""}, "out.csv", DataError, r"no row in .*a\.csv"),
        ({"a.csv": "text\nfox\n", "b.csv": "body\nfox\n"}, "out.csv", DataError, r"b\.csv`: no column `text`"),
        (
            {"a.csv": "text,n\nfox,1\n", "b.csv": "text\nfox\n"},
            "out.csv",
            DataError,
            r"b\.csv`: no column `n` from row 1 on",
        ),
        (
            {"a.csv": "text\nfox\n", "b.csv": "text,n\nfox,1\n"},
            "out.csv",
            DataError,
            r"b\.csv`: an additional column `n` from row 1 on",
        ),
        (
            {"a.csv": "text\nfox\n", "b.parquet": TWO},
            "out.parquet",
            DataError,
            r"b\.parquet`: an additional column `n` from row 1 on",
        ),
        (
            {"a.jsonl": TWO, "b.jsonl": [{"text": "a", "n": "b"}]},
            "out.parquet",
            DataError,
            r"b\.jsonl`: column `n`: string here, but int64 before",
        ),
        (
            {"a.jsonl": TWO, "b.jsonl": [{"text": "a", "n": True}]},
            "out.parquet",
            DataError,
            r"b\.jsonl`: column `n`: bool",
        ),
        (
            {"a.jsonl": [{"text": "a", "n": 0.5}], "b.jsonl": [{"text": "a", "n": 2**53 + 1}]},
            "out.parquet",
            DataError,
            r"b\.jsonl`: column `n`: cannot become double: Integer value 9007199254740993",
        ),
        (
            {"a.jsonl": [*TWO, {"text": "a", "n": 10**30}]},
            "out.parquet",
            DataError,
            r"a\.jsonl`: column `n`: rows 1 to 3: .*too large",
        ),
        (
            {"a.jsonl": [{"text": "a", "n": {}}]},
            "out.parquet",
            DataError,
            r"a\.jsonl`: column `n`: rows 1 to 1: .*no child field",
        ),
        (
            {"a.jsonl": CLASH[:1], "b.jsonl": CLASH[1:]},
            "out.jsonl",
            DataError,
            r"b\.jsonl`: an additional column `label` from row 1 on",
        ),
        ({"a.csv": "text\nfox\n", "b.csv": b"\xff\xfe"}, "out.csv", DataError, r"b\.csv`: "),
    ],
)
def test_predict_failure_leaves_no_file(
    tmp_path: Path,
    tiny_bundle: str,
    inputs: dict[str, Any],
    out: str,
    error: type[Exception],
    message: str,
) -> None:
    (tmp_path / "model.csv").mkdir()
    paths = [put(tmp_path / name, content) for name, content in inputs.items()]
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(error, match=message):
        predict.predict(tiny_bundle, paths, out=str(tmp_path / out))
    assert sorted(os.listdir(tmp_path)) == before


def test_predict_failure_keeps_the_earlier_output(tmp_path: Path, tiny_bundle: str) -> None:
    path = put(tmp_path / "out.csv", "earlier")
    with pytest.raises(DataError):
        predict.predict(tiny_bundle, [put(tmp_path / "in.csv", "body\nfox\n")], out=path)
    assert Path(path).read_text() == "earlier"


def test_predict_missing_model_or_input_raises(tmp_path: Path, tiny_bundle: str) -> None:
    with pytest.raises(BundleError, match="not a model bundle"):
        predict.predict(str(tmp_path), [put(tmp_path / "in.csv", ROWS)], out=str(tmp_path / "out.csv"))
    with pytest.raises(DataError, match="no such file"):
        predict.predict(tiny_bundle, [str(tmp_path / "none.csv")], out=str(tmp_path / "out.csv"))
    with pytest.raises(ConfigError, match=r"--text-column: 2 column\(s\), but the model reads 1 \(text\)"):
        predict.predict(
            tiny_bundle, [put(tmp_path / "in.csv", ROWS)], out=str(tmp_path / "out.csv"), text_columns=["a", "b"]
        )


@pytest.mark.parametrize("option", [{"cpus": 2.0}, {"gpus": 0.0}, {"address": "auto"}])
def test_predict_worker_options_without_workers_raise(tiny_bundle: str, option: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigError, match=r"^--(cpus-per-worker|gpus-per-worker|address): needs Ray workers\. Pass --workers"
    ):
        predict_command.predict(tiny_bundle, ["in.csv"], "out.csv", **option)


def test_predict_into_an_input_with_rows_that_would_be_lost_raises(tmp_path: Path, tiny_bundle: str) -> None:
    path = tmp_path / "in.csv"
    path.write_text("text,n\nfox,1\ndog,2,3\n")
    for out in (str(path), f"{tmp_path}/./in.csv"):
        with pytest.raises(DataError, match=r"in\.csv`: is one of the inputs, and has rows that cannot be read, which"):
            predict.predict(tiny_bundle, [str(path)], out=out)
    assert path.read_text() == "text,n\nfox,1\ndog,2,3\n"
    assert os.listdir(tmp_path) == ["in.csv"]


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_gpus_without_workers_raise_in_python_too(tiny_bundle: str, verb: str) -> None:
    arguments: dict[str, Any] = {"inputs": "in.csv", "out": "out.csv"} if verb == "predict" else {}
    with pytest.raises(ConfigError, match="--gpus-per-worker: needs Ray workers"):
        getattr(txclf, verb)(tiny_bundle, gpus_per_worker=1, **arguments)


@pytest.mark.parametrize("is_last", [True, False])
def test_predict_input_that_changes_meanwhile_raises(tmp_path: Path, tiny_bundle: str, is_last: bool) -> None:
    paths = [tmp_path / "a.csv", tmp_path / "b.csv"]
    for path in paths:
        path.write_text("text\n" + "fox\n" * 30)

    def change(rows: int) -> None:
        if rows == 40:  # the first file is finished then
            paths[is_last].write_text("text\n" + "dog\n" * 30)

    with pytest.raises(DataError, match=rf"{paths[is_last].name}`: changed while it was read"):
        predict.predict(
            tiny_bundle, list(map(str, paths)), out=str(tmp_path / "o.csv"), chunk_rows=10, on_progress=change
        )
    assert not (tmp_path / "o.csv").exists()


def test_predict_a_folder_of_texts_for_a_model_of_several_texts_is_refused(tmp_path: Path) -> None:
    model = untrained(tmp_path / "model", data={"text": ["title", "body"]})
    (tmp_path / "in/news").mkdir(parents=True)
    (tmp_path / "in/news/a.txt").write_text("a fox")
    with pytest.raises(
        DataError, match=r"in/news`: a folder of text files has one text per row, but 2 are read \(title"
    ):
        predict.predict(model, [str(tmp_path / "in")], out=str(tmp_path / "out.csv"))
    assert not list(tmp_path.glob(".out*"))

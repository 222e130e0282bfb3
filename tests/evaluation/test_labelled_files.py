"""Labelled files for an evaluation: tokenized like the training rows, with bad rows skipped or refused."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from tests.helpers.files import make_rows, write_csv
from tests.helpers.serving import untrained
from txclf import Classifier, Seq2Seq
from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.core.errors import DataError
from txclf.data import sources
from txclf.evaluation import labelled_files


def run_of(task: str, **data: object) -> RunConfig:
    return run_config.parse({"task": task, "data": {"train": "train.csv", **data}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles")


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Classifier:
    return Classifier.load(untrained(folder, task="classify"))


@pytest.fixture(scope="module")
def tagger(folder: Path) -> Classifier:
    return Classifier.load(untrained(folder, task="multilabel"))


def read_labels(run: RunConfig, classifier: Classifier, path: str) -> tuple[pa.Table, int]:
    """Return the rows of a file, and the number of its bad rows."""
    (source,) = sources.find_sources([path])
    chunks = list(labelled_files.read_answers(run, source, set(classifier.labels)))
    rejects = [reject for chunk in chunks for reject in chunk.rejects]
    labelled_files.require_usable(run, [path], sum(len(chunk.texts) for chunk in chunks), rejects)
    return pa.concat_tables([labelled_files.label_table(run, classifier, chunk) for chunk in chunks]), len(rejects)


def test_label_table_classify_returns_ids_in_the_models_order(classifier: Classifier, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [("the fox", "low"), ("a dog", "mid"), ("the dog", "high")])
    table, skipped = read_labels(run_of("classify"), classifier, path)
    assert skipped == 0
    assert [classifier.labels[number] for number in table["label"].to_pylist()] == ["low", "mid", "high"]
    assert table["text"].to_pylist() == ["the fox", "a dog", "the dog"]
    assert table["input_ids"].to_pylist() == classifier.encode([("the fox",), ("a dog",), ("the dog",)]).to_pylist()


def test_label_table_multilabel_splits_sets_at_the_delimiter(tagger: Classifier, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [("the fox", "mid;low"), ("a dog", "high"), ("the dog", "")])
    table, skipped = read_labels(run_of("multilabel", label_delimiter=";"), tagger, path)
    sets = [sorted(tagger.labels[number] for number in row) for row in table["labels"].to_pylist()]
    assert (sets, skipped) == ([["low", "mid"], ["high"], []], 0)
    assert all(row == sorted(row) for row in table["labels"].to_pylist())


def test_label_table_bad_rows_are_skipped_if_the_run_skips_them(classifier: Classifier, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [("the fox", "low"), ("", "mid"), ("a dog", "unheard"), ("a fox", "")])
    table, skipped = read_labels(run_of("classify", on_bad_row="skip"), classifier, path)
    assert (table.num_rows, skipped) == (1, 3)


def test_label_table_bad_rows_are_refused_by_name(classifier: Classifier, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [("the fox", "low"), ("a dog", "unheard"), ("", "mid")])
    with pytest.raises(DataError) as caught:
        read_labels(run_of("classify", on_bad_row="fail"), classifier, path)
    message = str(caught.value)
    assert "2 bad row(s) and the run has `data.on_bad_row: fail`. Fix these rows" in message
    assert f"{path}: row 2: label `unheard` is not one of the model's" in message
    assert f"{path}: row 3: " in message


def test_label_table_many_bad_rows_lists_the_first(classifier: Classifier, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", make_rows(50))
    with pytest.raises(DataError) as caught:
        read_labels(run_of("classify", on_bad_row="fail"), classifier, path)
    assert "50 bad row(s)" in str(caught.value)
    assert str(caught.value).count(": row ") == labelled_files.MAX_SHOWN_REJECTS


def test_label_table_no_usable_row_is_refused(classifier: Classifier, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", make_rows(5))
    with pytest.raises(DataError, match=r"a\.csv`: no usable row\. Pass files with labelled rows"):
        read_labels(run_of("classify", on_bad_row="skip"), classifier, path)


def test_target_table_seq2seq_encodes_source_and_target(folder: Path, tmp_path: Path) -> None:
    model = Seq2Seq.load(untrained(folder, task="seq2seq", data={"target": "target"}))
    path = write_csv(tmp_path / "a.csv", [("the fox", "a dog"), ("the dog", "")], header=("text", "target"))
    (source,) = sources.find_sources([path])
    (chunk,) = labelled_files.read_answers(run_of("seq2seq", on_bad_row="skip"), source)
    table = labelled_files.target_table(model, chunk)
    assert (table.num_rows, len(chunk.rejects)) == (1, 1)
    assert table["target"].to_pylist() == ["a dog"]
    assert table["input_ids"].to_pylist() == model.encode([("the fox",)]).to_pylist()
    assert model.target_tokenizer.decode(table["target_ids"].to_pylist()[0]).split() == ["a", "dog"]

"""A first run file: settings and comments that fit labelled files, which then prepare without changes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.files import make_rows, write_csv
from txclf.config import run_config, yaml_text
from txclf.config.run_config import RunConfig
from txclf.core.errors import DataError
from txclf.data import shards
from txclf.data.prepare import prepare
from txclf.data.starter import Starter, starter


def loaded(found: Starter, folder: Path) -> RunConfig:
    (folder / "run.yaml").write_text(found.content)
    return run_config.load(folder / "run.yaml", [f"storage={folder}/runs"])


def set_keys(found: Starter) -> dict[str, Any]:
    settings: dict[str, Any] = yaml_text.parse(found.content)
    return settings


def test_starter_messy_file_is_prepared_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [f"{text} schön;{label}" for text, label in make_rows(300)]
    lines[20:20] = ["zu;viele;Felder", ";pos", "ohne Label;"]
    Path("Mes Données 1.csv").write_bytes("\r\n".join(["Nachricht;Art", *lines]).encode("latin-1"))
    found = starter(["Mes Données 1.csv"])
    run = loaded(found, tmp_path)
    assert set_keys(found) == {
        "name": "Mes-Donn-es-1",
        "data": {
            "train": "Mes Données 1.csv",
            "encoding": "latin-1",
            "delimiter": ";",
            "text": "Nachricht",
            "label": "Art",
            "test_fraction": 0.2,
            "on_bad_row": "skip",
        },
    }
    assert "  # 3 bad row(s) are left out:\n  # 1: expected 2 fields, found 3\n" in found.content
    assert found.facts["bad rows"].startswith("3 (1: expected 2 fields, found 3;")
    assert max(map(len, found.content.splitlines())) <= 80
    splits = shards.load_manifest(prepare(run)).splits
    assert set(splits) == {"train", "valid", "test"}
    assert sum(split.rows for split in splits.values()) == 300


def test_starter_plain_file_needs_few_keys(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "train.csv", make_rows(60))
    assert set_keys(starter([path])) == {"name": "train", "data": {"train": path, "test_fraction": 0}}
    large = write_csv(tmp_path / "large.csv", make_rows(1_500))
    assert set_keys(starter([large]))["data"]["test_fraction"] == 0.1


def test_starter_names_tell_the_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train-0", "train-1", "dev", "test"):
        write_csv(tmp_path / f"{name}.csv", make_rows(60))
    write_csv(tmp_path / "dev.csv", [*make_rows(20), ("text", "unseen")])
    found = starter(["train-*.csv", "dev.csv", "test.csv"])
    data = set_keys(found)["data"]
    assert data == {"train": "train-*.csv", "valid": "dev.csv", "test": "test.csv", "on_bad_row": "skip"}
    assert "1: label `unseen` is not among the training labels" in found.content
    data = set_keys(starter(["."]))["data"]
    assert data["train"] == ["train-0.csv", "train-1.csv"]
    assert (data["valid"], data["test"]) == ("dev.csv", "test.csv")
    assert set_keys(starter(["test.csv"]))["data"]["train"] == "test.csv"


@pytest.mark.parametrize("joined", ["a|b", "b|a"])
def test_starter_small_splits_have_the_label_delimiter_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, joined: str
) -> None:
    monkeypatch.chdir(tmp_path)
    labels = ["a", "b", "c", "a|b", "b|c", "a|c", "a|b|c"]
    write_csv(tmp_path / "train.csv", [(f"text {number}", labels[number % 7]) for number in range(70)])
    write_csv(tmp_path / "test.csv", [("one text", joined), ("another text", "c")])
    found = starter(["train.csv", "test.csv"])
    settings = set_keys(found)
    assert settings["task"] == "multilabel"
    assert settings["data"] == {"train": "train.csv", "test": "test.csv", "label_delimiter": "|"}
    assert found.facts["bad rows"] == "0"


def test_starter_splits_with_joined_labels_are_single_labels_as_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    labels = ["a", "b", "a|b", "b|a"]
    write_csv(tmp_path / "train.csv", [(f"text {number}", labels[number % 4]) for number in range(40)])
    write_csv(tmp_path / "test.csv", [(f"other {number}", label) for number, label in enumerate(["a|b", "b|a"])])
    found = starter(["train.csv", "test.csv"])
    assert found.facts["bad rows"] == "0"


def test_starter_test_file_without_labels_is_left_out(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "train.csv", make_rows(60))
    test = write_csv(tmp_path / "test.csv", [(text,) for text, _ in make_rows(9)], header=("text",))
    found = starter([train, test])
    assert "test" not in set_keys(found)["data"]
    assert found.warnings == [f"`{test}`: left out, because it has no columns `text`, `label`."]


@pytest.mark.parametrize("as_list", [True, False])
def test_starter_sets_of_labels_are_multilabel(tmp_path: Path, as_list: bool) -> None:
    sets = [["a"], ["a", "b"], ["b"], ["c"], ["c", "a"]]
    rows = [{"text": f"text {n}", "tags": sets[n % 5] if as_list else "|".join(sets[n % 5])} for n in range(100)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = starter([f"{tmp_path}/a.jsonl"], label="tags")
    run = loaded(found, tmp_path)
    assert run.task == "multilabel"
    assert shards.load_manifest(prepare(run)).labels == ["a", "b", "c"]


def test_starter_folder_of_texts_needs_no_columns(tmp_path: Path) -> None:
    for number in range(40):
        path = tmp_path / "mail" / ("good", "bad")[number % 2] / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text {number}")
    found = starter([f"{tmp_path}/mail"])
    assert set_keys(found)["data"] == {"train": f"{tmp_path}/mail", "test_fraction": 0}


def test_starter_strange_names_and_labels_are_written_safely(tmp_path: Path) -> None:
    rows = [
        (f"a longer text {number}", ["# no: {", "yes\u202e\x1b[1m", "- 'a'\n b"][number % 3]) for number in range(60)
    ]
    path = write_csv(tmp_path / "a'b #1.csv", rows, header=("the: text #", "on"))
    found = starter([path])
    run = loaded(found, tmp_path)
    assert (run.data.train, run.data.text, run.data.label) == ((path,), ("the: text #",), "on")
    assert len(shards.load_manifest(prepare(run)).labels) == 3


@pytest.mark.parametrize(
    ("rows", "header", "problem"),
    [
        ([(f"text {n}", "x") for n in range(30)], ("text", "label"), "every row has the label `x`"),
        ([(f"text {n}", f"id {n}") for n in range(30)], ("text", "label"), "has 30 different labels in 30 rows"),
        ([(f"a text {n}", f"t {n}") for n in range(30)], ("a", "b"), "looks like a label. Pass --label-column COLUMN"),
        ([(" ", "x")] * 5, ("text", "label"), "no usable row"),
    ],
)
def test_starter_files_that_cannot_train_are_refused(
    tmp_path: Path, rows: Sequence[Sequence[str]], header: Sequence[str], problem: str
) -> None:
    with pytest.raises(DataError, match=problem):
        starter([write_csv(tmp_path / "a.csv", rows, header=header)])


def test_starter_file_of_one_json_list_says_why_no_row_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('[{"text": "a", "label": "b"}]\n')
    with pytest.raises(DataError, match=r"`.*rows.jsonl`: no row can be read: .*expected an object"):
        starter([f"{tmp_path}/rows.jsonl"])


def test_starter_labels_that_are_numbers_are_told_from_their_rows(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "rows.csv", [(text, str(int(label == "pos"))) for text, label in make_rows(40)])
    assert starter([data]).facts["labels"] == "2: 1 (25), 0 (15)"


def test_starter_leaves_out_a_test_file_without_labels(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "train.csv", make_rows(60))
    empty = write_csv(tmp_path / "test.csv", [(text, "") for text, _ in make_rows(20)])
    found = starter([path, empty])
    assert set_keys(found)["data"] == {"train": path, "test_fraction": 0}
    assert found.warnings == [f"`{empty}`: left out, because no row has one of the training labels."]
    prepare(loaded(found, tmp_path))


def test_starter_warns_of_files_whose_rows_are_mostly_bad(tmp_path: Path) -> None:
    rows = [(f"text {i}", "ab"[i % 2] if i < 30 else "") for i in range(100)]
    found = starter([write_csv(tmp_path / "train.csv", rows)])
    assert found.warnings == ["70 of 100 rows cannot be used: no label: `label` missing or blank."]
    assert "  # 70 bad row(s) are left out:" in found.content


def test_starter_reads_a_delimiter_that_the_first_line_declares(tmp_path: Path) -> None:
    lines = ["sep=;", "text;label", *(f"{text};{label}" for text, label in make_rows(60))]
    (tmp_path / "a.csv").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    found = starter([str(tmp_path / "a.csv")])
    assert found.facts["labels"].startswith("2: ")
    splits = shards.load_manifest(prepare(loaded(found, tmp_path))).splits
    assert sum(split.rows for split in splits.values()) == 60

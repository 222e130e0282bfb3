"""Profile of raw files: guessed columns, duplicates, conflicts, suggestions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.files import make_rows, write_csv
from txclf.config import run_config
from txclf.core.errors import DataError
from txclf.data import profile
from txclf.data.sources import Source, find_sources


def audit(path: str, text: tuple[str, ...] = (), label: str | None = None) -> dict[str, Any]:
    return profile.audit(path, find_sources([path]), text, label)


def test_audit_columns_are_guessed_by_name(tmp_path: Path) -> None:
    found = audit(write_csv(tmp_path / "a.csv", make_rows(50), header=("review", "sentiment")))
    assert (found["text"], found["label"]) == (["review"], "sentiment")
    assert found["suggested"]["data"]["text"] == ["review"]
    assert found["suggested"]["data"]["label"] == "sentiment"


def test_audit_columns_without_known_names_are_guessed_by_content(tmp_path: Path) -> None:
    found = audit(write_csv(tmp_path / "a.csv", make_rows(50), header=("long", "short")))
    assert (found["text"], found["label"]) == (["long"], "short")


def test_audit_counts_duplicates_conflicts_and_bad_rows(tmp_path: Path) -> None:
    rows = [("same", "a"), ("same", "b"), ("other", "a"), ("other", "a"), ("", "a"), ("last", "b")]
    found = audit(write_csv(tmp_path / "a.csv", rows))
    assert (found["rows"], found["bad_rows"], found["duplicates"]) == (5, 1, 2)
    assert found["conflicting_texts"] == 1
    assert [(example["row"], example["label"]) for example in found["conflict_examples"]] == [(1, "a"), (2, "b")]
    assert found["bad_examples"] == [
        {"file": str(tmp_path / "a.csv"), "row": 5, "reason": "no text: `text` missing or blank"}
    ]
    assert found["suggested"]["data"]["on_bad_row"] == "skip"


def test_audit_imbalanced_labels_suggest_macro_f1(tmp_path: Path) -> None:
    rows = [(f"text {number}", "rare" if number < 3 else "common") for number in range(100)]
    assert audit(write_csv(tmp_path / "a.csv", rows))["suggested"]["train"]["monitor"] == "valid_f1_macro"


def test_audit_lists_of_labels_suggest_multilabel(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"t {i}", "labels": ["a", "b"][: i % 3]}) + "\n" for i in range(30)))
    found = audit(str(path))
    assert found["suggested"]["task"] == "multilabel"
    assert found["label_rows"] == [{"label": "a", "rows": 20}, {"label": "b", "rows": 10}]


def test_audit_file_names_suggest_splits(tmp_path: Path) -> None:
    paths = [write_csv(tmp_path / f"{name}.csv", make_rows(20)) for name in ("train", "dev", "test")]
    data = audit(str(tmp_path))["suggested"]["data"]
    assert (data["train"], data["valid"], data["test"]) == tuple(paths)


def test_audit_suggestion_is_a_valid_run_file(tmp_path: Path) -> None:
    suggested = audit(write_csv(tmp_path / "a.csv", make_rows(50), header=("review", "sentiment")))["suggested"]
    assert run_config.parse(suggested).data.label == "sentiment"


def test_audit_missing_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column `nope`"):
        audit(write_csv(tmp_path / "a.csv", make_rows(5)), label="nope")


def test_audit_labels_that_look_the_same_are_named(tmp_path: Path) -> None:
    rows = [(f"text {i}", ["spam", "spam\u200b", "ham"][i % 3]) for i in range(30)]
    (warning,) = audit(write_csv(tmp_path / "a.csv", rows))["warnings"]
    assert warning.startswith(r"`spam`, `spam\u200b`: labels that differ only in")


@pytest.mark.parametrize("content", ["", "text,label\n"])
def test_audit_without_rows_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(DataError, match=r"a\.csv`: no row, only empty files or headers"):
        audit(str(tmp_path / "a.csv"))


@pytest.mark.parametrize("delimiter", [",", ";", "|"])
def test_audit_strings_of_labels_suggest_multilabel(tmp_path: Path, delimiter: str) -> None:
    sets = [["joy"], ["joy", "fear"], ["fear"], [], ["awe", "joy"], ["awe", "fear", "joy"]]
    rows = [(f"text {number}", delimiter.join(sets[number % 6])) for number in range(60)]
    found = audit(write_csv(tmp_path / "a.csv", rows, header=("text", "tags")), label="tags")
    assert found["label_rows"][0] == {"label": "joy", "rows": 40}
    assert (found["rows"], found["bad_rows"], found["suggested"]["task"]) == (60, 0, "multilabel")
    assert run_config.parse(found["suggested"]).data.label_delimiter == delimiter


def test_audit_single_labels_with_commas_stay_whole(tmp_path: Path) -> None:
    rows = [(f"text {number}", ["Paris, Texas", "Rome, Georgia", "Paris, France"][number % 3]) for number in range(60)]
    found = audit(write_csv(tmp_path / "a.csv", rows))
    assert "task" not in found["suggested"]
    assert found["labels"] == 3


def test_audit_scripts_are_shares_of_letters(tmp_path: Path) -> None:
    rows = [("Привет abcdef 123", "a"), ("Привет abcdef", "b")] * 5
    found = audit(write_csv(tmp_path / "a.csv", rows))
    assert found["script_percent"] == {"Cyrillic": 50, "Latin": 50}


def test_audit_characters_of_scripts_without_spaces_are_words(tmp_path: Path) -> None:
    found = audit(write_csv(tmp_path / "a.csv", [("映画はabc", "a"), ("映画", "b")] * 5))
    assert (found["words"]["shortest"], found["words"]["longest"]) == (2, 4)


def test_audit_header_that_is_a_row_is_named(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path / "a.csv", [(label, text) for text, label in make_rows(30)], header=("pos", "a good film")
    )
    assert any(
        warning.startswith("`pos`: a name of the header looks like a value") for warning in audit(path)["warnings"]
    )


def test_audit_columns_of_flags_are_named(tmp_path: Path) -> None:
    rows = [(f"text {number}", str(number % 2), str(number % 3 // 2)) for number in range(30)]
    found = audit(write_csv(tmp_path / "a.csv", rows, header=("text", "toxic", "rude")))
    assert any(warning.startswith("`toxic`, `rude`: columns of 0 and 1.") for warning in found["warnings"])


def test_audit_labels_that_differ_in_case_or_outer_spaces(tmp_path: Path) -> None:
    rows = [(f"text {number}", ["Spam", "spam ", " spam", "ham"][number % 4]) for number in range(40)]
    found = audit(write_csv(tmp_path / "a.csv", rows))
    assert found["warnings"] == [
        "`Spam`, `spam`: labels that differ only in case are different classes. Write them alike if they are one class."
    ]
    assert found["labels"] == 3  # outer spaces are not part of a label


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["imdb.train.csv", "imdb.test.csv"], ["train", "test"]),
        (["train/part-0.csv", "test/part-0.csv", "dev/part-0.csv"], ["train", "test", "valid"]),
        (["test/train.csv", "test/train/more.csv", "test/eval.csv"], ["train", "train", "test"]),
        (["train-00000-of-00002.parquet", "validation-00000-of-00001.parquet"], ["train", "valid"]),
        (["test.csv"], ["train"]),
        (["contest.csv", "latest.csv"], ["train", "train"]),
    ],
)
def test_by_split_reads_the_names_of_files_then_of_folders(names: list[str], expected: list[str]) -> None:
    files = [(f"/my/test/folder/{name}", Source(name, "csv")) for name in names]
    found = profile.by_split(files)
    splits = {source.path: split for split, sources in found.items() for source in sources}
    assert [splits[name] for name in names] == expected


def test_audit_columns_that_are_mostly_empty_are_not_guessed(tmp_path: Path) -> None:
    texts = [f"a tweet {number} about something" for number in range(100)]
    rows = [
        (
            text,
            "abc"[i % 3],
            ("a very long note of a moderator " * 5, "x" * (1 + i % 2))[0] if i < 5 else "",
            "uv"[i % 2] if i < 8 else "",
        )
        for i, text in enumerate(texts)
    ]
    found = audit(write_csv(tmp_path / "a.csv", rows, header=("tweet", "theme", "note", "flag")))
    assert (found["text"], found["label"], found["bad_rows"]) == (["tweet"], "theme", 0)


def test_audit_text_column_may_hold_a_few_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [
        {"text": 7 if i == 3 else f"text number {i}", "source": "the longer name of a source", "label": "ab"[i % 2]}
        for i in range(50)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = audit(str(path))
    assert (found["text"], found["label"], found["bad_rows"]) == (["text"], "label", 1)


def test_audit_counts_reasons_without_their_line(tmp_path: Path) -> None:
    lines = ["text,label", *(f'"text {i}"x,a' for i in range(40)), *(f"text {i},{'ab'[i % 2]}" for i in range(20))]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    found = audit(str(tmp_path / "a.csv"))
    (reason,) = found["bad_reasons"]
    assert (found["bad_rows"], reason["rows"]) == (40, 40)
    assert reason["reason"].startswith("malformed csv")

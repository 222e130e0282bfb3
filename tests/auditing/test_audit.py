"""The audit of a run: suspects, duplicates, files, corrections, and what it refuses."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import txclf
from tests.helpers.files import write_csv
from tests.helpers.pairs import write_pairs
from tests.helpers.runs import tiny
from tests.helpers.topics import make
from txclf.auditing import audit as audits
from txclf.auditing.audit import audit
from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.core.errors import ConfigError, DataError
from txclf.data.prepare import prepare
from txclf.training.fitting import begin
from txclf.training.job import WorkerConfig

NAMES = ["sport", "money", "life"]
HOSTILE = ['goal match "x",\r\nteam', "=goal match team", "\x1b[31mgoal\u202e match team score"]
DUPLICATES = [("the gene of a virus", "life"), ("The  gene of a virus", "life"), ("the gene of a virus", "sport")]


def begun(tmp_path: Path, rows: list[tuple[str, str]], *words: str) -> RunConfig:
    """Prepare rows and begin a run on them, which is what an audit needs of it."""
    data = write_csv(tmp_path / "rows.csv", rows)
    run = tiny(tmp_path / "runs", data, "name=one", "data.test_fraction=0", *words)
    begin(WorkerConfig(run=run, prepared=prepare(run)))
    return run


def planted() -> tuple[list[tuple[str, str]], set[str]]:
    """Return labelled rows and the texts of those whose label is wrong."""
    texts, topics = make(300)
    texts = [f"{text} {number}" for number, text in enumerate(texts)]
    labels = topics.copy()
    labels[::15] = (topics[::15] + 1) % 3
    return [(text, NAMES[label]) for text, label in zip(texts, labels, strict=True)], set(texts[::15])


def read(path: str) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, dict[str, Any], set[str]]:
    rows, wrong = planted()
    rows += [*((text, "money") for text in HOSTILE), *DUPLICATES]
    run = begun(tmp_path_factory.mktemp("audit"), rows)
    return run, audit(run.run_folder), wrong | set(HOSTILE)


def test_audit_finds_planted_errors_and_duplicates(audited: tuple[RunConfig, dict[str, Any], set[str]]) -> None:
    run, found, wrong = audited
    suspects = read(found["suspects_file"])
    assert found["suspects_file"] == f"{run.run_folder}/audit/suspects.csv"
    by_text = {row["text"]: row for row in suspects}
    assert len(by_text.keys() & wrong) > 0.8 * len(wrong)
    assert len(by_text.keys() - wrong) < 0.5 * len(wrong)
    assert found["suspects"] == len(suspects) == sum(pair["rows"] for pair in found["pairs"])
    assert found["rows"] == 306
    assert (found["conflicting_texts"], found["kinds"]["duplicate"]) == (1, 1)
    (duplicate,) = [row for row in suspects if "duplicate" in row["kind"]]
    assert (duplicate["text"], duplicate["label"], duplicate["suggested"]) == ("the gene of a virus", "sport", "life")
    assert all(row["suggested"] == "sport" and row["corrected"] == "" for row in map(by_text.get, HOSTILE) if row)
    chances = [float(row["probability"]) for row in suspects]
    assert chances == sorted(chances)
    assert [row["text"] for row in suspects[:10]] != [row["text"] for row in suspects[10:20]]
    assert [row["key"] for row in found["most_doubtful"]] == [row["key"] for row in suspects[:10]]


def test_audit_rows_file_has_every_row_hardest_first(audited: tuple[RunConfig, dict[str, Any], set[str]]) -> None:
    _, found, _ = audited
    rows = read(found["rows_file"])
    assert sorted(int(row["row"]) for row in rows) == list(range(1, 307))
    assert {row["split"] for row in rows} == {"train", "valid"}
    chances = [float(row["probability"]) for row in rows]
    assert chances == sorted(chances)
    groups = [row["group"] for row in rows if int(row["row"]) > 303]
    assert len(set(groups)) == 1
    assert groups[0]
    assert found["near_duplicate_rows"] >= 3


def test_audit_maps_the_rows(audited: tuple[RunConfig, dict[str, Any], set[str]]) -> None:
    _, found, wrong = audited
    rows = {(row["file"], row["row"]): row for row in read(found["rows_file"])}
    texts = {(row["file"], row["row"]): row["text"] for row in read(found["suspects_file"])}
    planted = [float(rows[key]["confidence"]) for key, text in texts.items() if text in wrong]
    others = [float(row["confidence"]) for key, row in rows.items() if key not in texts]
    assert np.median(planted) < 0.5 < np.median(others) - 0.1
    variability = [float(row["variability"]) for row in rows.values()]
    assert found["most_ambiguous"][0]["variability"] == max(variability)
    assert found["outliers"][0]["similarity"] == min(float(row["similarity"]) for row in rows.values())
    assert found["outlier_rows"] == sum(float(row["similarity"]) < 0.1 for row in rows.values())


def test_audit_beyond_the_bound_leaves_the_map_blank(
    audited: tuple[RunConfig, dict[str, Any], set[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audits, "MAX_MAPPED", 100)
    rows = read(audits.audit(audited[0].run_folder, folds=2, out=str(tmp_path))["rows_file"])
    assert [len([row for row in rows if row[name]]) for name in ("confidence", "similarity")] == [100, 100]


def test_audit_filled_in_corrections_are_applied_and_never_replaced(
    audited: tuple[RunConfig, dict[str, Any], set[str]], tmp_path: Path
) -> None:
    run, _, wrong = audited
    first = txclf.audit(run.run_folder, folds=3, out=tmp_path / "mine")
    path = Path(first["suspects_file"])
    suspects = read(str(path))
    for row in suspects:
        row["corrected"] = row["suggested"]
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, suspects[0], delimiter=";")
        writer.writeheader()
        writer.writerows(suspects)
    content = path.read_bytes()
    with pytest.raises(ConfigError, match="corrections are filled in"):
        audit(run.run_folder, out=str(tmp_path / "mine"))
    assert path.read_bytes() == content
    corrected = run_config.with_overrides(run, {"name": "two", "data.corrections": [str(path)]})
    begin(WorkerConfig(run=corrected, prepared=prepare(corrected)))
    second = audit(corrected.run_folder)
    assert second["suspects"] < 0.5 * first["suspects"]
    assert second["conflicting_texts"] == 0
    assert not {row["text"] for row in read(second["suspects_file"])} & (wrong & {row["text"] for row in suspects})


def test_audit_is_the_same_every_time(audited: tuple[RunConfig, dict[str, Any], set[str]], tmp_path: Path) -> None:
    run, found, _ = audited
    again = audit(run.run_folder, out=str(tmp_path))
    assert Path(again["suspects_file"]).read_bytes() == Path(found["suspects_file"]).read_bytes()
    assert Path(again["rows_file"]).read_bytes() == Path(found["rows_file"]).read_bytes()


def test_audit_of_label_sets_suggests_the_missing_label(tmp_path: Path) -> None:
    texts, topics = make(300)
    texts = [f"{text} {number}" for number, text in enumerate(texts)]
    sets = [{NAMES[topic], "even"} if topic != 1 else {NAMES[topic]} for topic in topics]
    wrong = [number for number in range(0, 300, 15) if topics[number] != 1]
    for number in wrong:
        sets[number] -= {"even"}
    rows = [(text, ",".join(sorted(labels))) for text, labels in zip(texts, sets, strict=True)]
    found = audit(begun(tmp_path, rows, "task=multilabel").run_folder)
    suspects = {row["text"]: row for row in read(found["suspects_file"])}
    hits = [suspects[texts[number]] for number in wrong if texts[number] in suspects]
    assert len(hits) > 0.5 * len(wrong)
    assert np.mean([set(row["suggested"].split(",")) - set(row["label"].split(",")) == {"even"} for row in hits]) > 0.8


def test_audit_of_other_folders_is_refused(tmp_path: Path, tiny_bundle: str) -> None:
    for folder in (tmp_path, tiny_bundle, tmp_path / "nothing"):
        with pytest.raises(ConfigError, match="not a run folder"):
            audit(folder)
    rows = [(text, "pos" if number % 2 else "neg") for number, text in enumerate(["one", "two", "three"] * 4)]
    run = begun(tmp_path, rows, "data.valid_fraction=0.5")
    for folds in (1, 0, -1):
        with pytest.raises(ConfigError, match=rf"^`folds`: expected 2 or more, found {folds}\. Pass 5, for example\.$"):
            audit(run.run_folder, folds=folds)
    with pytest.raises(DataError, match="3 different texts are too few for 5 folds"):
        audit(run.run_folder)
    assert not Path(run.run_folder, "audit").exists()
    shutil.rmtree(tmp_path / "runs/prepared")
    with pytest.raises(DataError, match="prepared data were removed"):
        audit(run.run_folder)


def test_audit_of_labels_with_the_delimiter_is_refused(tmp_path: Path) -> None:
    rows = [
        {"text": f"text {number}", "label": ["Sci-Fi, Fantasy"] if number % 2 else ["Drama"]} for number in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = tiny(tmp_path / "runs", str(tmp_path / "rows.jsonl"), "name=films", "task=multilabel")
    begin(WorkerConfig(run=run, prepared=prepare(run)))
    with pytest.raises(ConfigError, match=r"`Sci-Fi, Fantasy`: the label contains `data\.label_delimiter` \(,\)"):
        audit(run.run_folder)


def test_audit_of_targets_is_refused(tmp_path: Path) -> None:
    run = tiny(tmp_path / "runs", write_pairs(tmp_path / "pairs.jsonl"), "name=one", "task=seq2seq", "data.text=source")
    begin(WorkerConfig(run=run, prepared=prepare(run)))
    with pytest.raises(ConfigError, match="has no labels to audit"):
        audit(run.run_folder)

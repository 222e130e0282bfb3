"""Manifest of prepared data: the counts of splits that are held out of the training files."""

from __future__ import annotations

from pathlib import Path

from tests.helpers import multilabel, pairs
from tests.helpers.files import make_rows, write_csv
from txclf.config import run_config
from txclf.data import shards
from txclf.data.prepare import prepare


def manifest_of(folder: Path, train: str, task: str = "classify", **columns: str) -> shards.Manifest:
    run = {"storage": str(folder / "runs"), "tokenizer": {"vocab_size": 300, "min_frequency": 1}, "task": task}
    data = {"train": train, "test_fraction": 0.3, "valid_fraction": 0.3, "on_bad_row": "skip", **columns}
    return shards.load_manifest(prepare(run_config.parse({**run, "data": data})))


def test_summed_up_bad_rows_count_under_train(tmp_path: Path) -> None:
    rows = [*make_rows(100), ("", "pos"), *make_rows(40)]
    manifest = manifest_of(tmp_path, write_csv(tmp_path / "a.csv", rows))
    assert {name: split.rejected for name, split in manifest.splits.items()} == {"train": 1, "valid": 0, "test": 0}
    assert sum(split.read for split in manifest.splits.values()) == 141
    assert sum(split.duplicates for split in manifest.splits.values()) == 40
    assert [split.duplicates_of_train for split in manifest.splits.values()] == [0, 0, 0]


def test_summed_up_other_tasks_have_a_test_split(tmp_path: Path) -> None:
    tagged = multilabel.write_lines(tmp_path / "tags.jsonl", multilabel.make(120, seed=0))
    paired = pairs.write_pairs(tmp_path / "pairs.jsonl")
    for manifest in (
        manifest_of(tmp_path, tagged, "multilabel", label="tags"),
        manifest_of(tmp_path, paired, "seq2seq", text="source"),
    ):
        rows = {name: split.rows for name, split in manifest.splits.items()}
        assert set(rows) == {"train", "valid", "test"}
        assert rows["test"] > 0.15 * sum(rows.values())


def test_summed_up_class_that_is_held_out_is_a_warning(tmp_path: Path) -> None:
    rows = [(f"text {number}", "ab"[number % 2]) for number in range(60)]
    hashes = shards.text_hashes((f"rare {number}",) for number in range(100))
    rare = next(number for number in range(100) if shards.test_rows(hashes, 0.3)[number])
    manifest = manifest_of(tmp_path, write_csv(tmp_path / "a.csv", [*rows, (f"rare {rare}", "c")]))
    assert any(warning.startswith("`c`: no training row. The 1 row(s)") for warning in manifest.warnings)

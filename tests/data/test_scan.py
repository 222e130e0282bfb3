"""The first pass over raw files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.helpers.files import make_rows, write_csv
from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.core.errors import DataError
from txclf.data import scan, shards
from txclf.data.prepare import find_sources


def make_run(tmp_path: Path, **data: Any) -> RunConfig:
    return run_config.parse({"storage": str(tmp_path), "data": data, "seed": 3})


def scan_split(run: RunConfig, split: str = "train", **options: Any) -> pa.Table:
    (task,) = scan.file_tasks(run, find_sources(run), split, labels=options.pop("labels", None), **options)
    return pa.concat_tables(scan.scan(task))


def test_scan_accepted_rows_have_hash_and_labels(tmp_path: Path) -> None:
    rows = make_rows(100)
    table = scan_split(make_run(tmp_path, train=write_csv(tmp_path / "a.csv", rows)))
    assert table.column_names == [*scan.ACCEPTED_SCHEMA.names, *scan.REJECTED_SCHEMA.names]
    assert table["hash"].to_pylist() == shards.text_hashes((text,) for text, _ in rows).tolist()
    assert table["labels"].to_pylist() == [[label] for _, label in rows]
    assert table["reason"].null_count == 100
    assert table["sample"].null_count == 100


def test_scan_bad_rows_and_unknown_labels_are_rejected_in_order(tmp_path: Path) -> None:
    rows = [("one", "a"), ("two", "new"), ("", "a"), ("four", "b")]
    run = make_run(tmp_path, train=write_csv(tmp_path / "a.csv", rows))
    table = scan_split(run, labels=("a", "b"))
    rejected = table.filter(table["reason"].is_valid())
    assert rejected["row"].to_pylist() == [2, 3]
    assert rejected["reason"][0].as_py() == "label `new` is not among the training labels"
    assert table.num_rows == 4
    assert table["hash"].null_count == 2


def test_scan_sample_holds_out_validation_rows(tmp_path: Path) -> None:
    rows = make_rows(500)
    run = make_run(tmp_path, train=write_csv(tmp_path / "a.csv", rows), valid_fraction=0.3)
    table = scan_split(run, sample_share=1.0)
    hashes = shards.text_hashes((text,) for text, _ in rows)
    held_out = shards.validation_rows(hashes, run.seed, 0.3)
    assert [text is None for text in table["sample"].to_pylist()] == held_out.tolist()


def test_file_tasks_number_files_over_all_splits(tmp_path: Path) -> None:
    train = [write_csv(tmp_path / f"{name}.csv", make_rows(5)) for name in "ab"]
    run = make_run(tmp_path, train=train, test=write_csv(tmp_path / "c.csv", make_rows(5)))
    sources = find_sources(run)
    numbers = [task.number for split in sources for task in scan.file_tasks(run, sources, split, labels=None)]
    assert numbers == [0, 1, 2]


def test_scan_all_stops_at_bad_rows(tmp_path: Path) -> None:
    run = make_run(tmp_path, train=write_csv(tmp_path / "a.csv", [*make_rows(10), ("", "pos")]))
    with pytest.raises(DataError, match="row 11: no text"):
        scan.scan_all(run, find_sources(run), lambda stage, rows: None)


def test_scan_all_reports_rows_and_counts_labels(tmp_path: Path) -> None:
    rows = make_rows(60)
    reports: list[tuple[str, int]] = []
    run = make_run(tmp_path, train=write_csv(tmp_path / "a.csv", rows))
    audits, sample = scan.scan_all(run, find_sources(run), lambda *report: reports.append(report))
    assert reports[-1] == ("read", 60)
    assert audits["train"].labels.total() == 60
    assert 0 < len(sample.texts) < 60
    assert sample.targets == []

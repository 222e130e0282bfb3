"""The first pass over raw files."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.helpers.files import make_rows, write_csv
from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.core.errors import DataError
from txclf.data import pipeline, scan, shards
from txclf.data.prepare import find_sources, prepare


def make_run(tmp_path: Path, **data: Any) -> RunConfig:
    return run_config.parse({"storage": str(tmp_path), "data": data, "seed": 3})


def scan_split(run: RunConfig, split: str = "train", **options: Any) -> pa.Table:
    (task,) = scan.file_tasks(run, find_sources(run), split, labels=options.pop("labels", None), **options)
    return pa.concat_tables(scan.scan(task))


def test_scan_accepted_rows_have_hash_and_labels(tmp_path: Path) -> None:
    rows = make_rows(100)
    table = scan_split(make_run(tmp_path, train=write_csv(tmp_path / "a.csv", rows)))
    schemas = (scan.ACCEPTED_SCHEMA, scan.LABELS_SCHEMA, scan.CORRECTED_SCHEMA, scan.REJECTED_SCHEMA)
    assert table.column_names == [name for schema in schemas for name in schema.names]
    assert table["hash"].drop_null().to_pylist() == shards.text_hashes((text,) for text, _ in rows).tolist()
    assert table["answer_hash"].drop_null().to_pylist() == shards.text_hashes((label,) for _, label in rows).tolist()
    counts = dict(zip(table["label"].drop_null().to_pylist(), table["label_rows"].drop_null().to_pylist(), strict=True))
    assert counts == Counter(label for _, label in rows)
    assert table["reason"].drop_null().to_pylist() == table["sample"].drop_null().to_pylist() == []


def test_scan_bad_rows_and_unknown_labels_are_rejected_in_order(tmp_path: Path) -> None:
    rows = [("one", "a"), ("two", "new"), ("", "a"), ("four", "b")]
    run = make_run(tmp_path, train=write_csv(tmp_path / "a.csv", rows))
    table = scan_split(run, labels=("a", "b"))
    rejected = table.filter(table["reason"].is_valid())
    assert rejected["row"].to_pylist() == [2, 3]
    assert rejected["reason"][0].as_py() == "label `new` is not among the training labels"
    assert len(table["hash"].drop_null()) == 2
    assert dict(zip(table["label"].to_pylist(), table["label_rows"].to_pylist(), strict=True)) == {
        None: None,
        "a": 1,
        "b": 1,
    }


def test_scan_sample_holds_out_validation_rows(tmp_path: Path) -> None:
    rows = make_rows(500)
    run = make_run(tmp_path, train=write_csv(tmp_path / "a.csv", rows), valid_fraction=0.3)
    table = scan_split(run, sample_share=1.0)
    hashes = shards.text_hashes((text,) for text, _ in rows)
    held_out = shards.validation_rows(hashes, run.seed, 0.3)
    accepted = table.filter(table["hash"].is_valid())
    assert [text is None for text in accepted["sample"].to_pylist()] == held_out.tolist()


def test_file_tasks_number_files_over_all_splits(tmp_path: Path) -> None:
    train = [write_csv(tmp_path / f"{name}.csv", make_rows(5)) for name in "ab"]
    run = make_run(tmp_path, train=train, test=write_csv(tmp_path / "c.csv", make_rows(5)))
    sources = find_sources(run)
    numbers = [task.number for split in sources for task in scan.file_tasks(run, sources, split, labels=None)]
    assert numbers == [0, 1, 2]


def test_scan_all_stops_at_bad_rows(tmp_path: Path) -> None:
    run = make_run(tmp_path, train=write_csv(tmp_path / "a.csv", [*make_rows(10), ("", "pos")]))
    with pytest.raises(DataError, match="row 11: no text"):
        scan.scan_all(run, find_sources(run), lambda stage, rows: None, io.BytesIO())


def test_scan_all_reports_rows_and_counts_labels(tmp_path: Path) -> None:
    rows = make_rows(60)
    reports: list[tuple[str, int]] = []
    run = make_run(tmp_path, train=write_csv(tmp_path / "a.csv", rows))
    audits, sample = scan.scan_all(run, find_sources(run), lambda *report: reports.append(report), io.BytesIO())
    assert reports[-1] == ("read", 60)
    assert audits["train"].labels.total() == 60
    assert 0 < len(sample.texts) < 60
    assert sample.targets == []


def test_scan_all_writes_every_reject_to_the_file_in_order(tmp_path: Path) -> None:
    rows = [("", "a") if number % 3 == 0 else (f"text {number}", "ab"[number % 2]) for number in range(6_000)]
    train, test = write_csv(tmp_path / "a.csv", rows), write_csv(tmp_path / "b.csv", [("one", "a"), ("two", "new")])
    run = make_run(tmp_path, train=train, test=test, on_bad_row="skip")
    file = io.BytesIO()
    audits, _ = scan.scan_all(run, find_sources(run), lambda stage, rows: None, file)
    rejects = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [(reject["file"], reject["row"]) for reject in rejects] == [
        *((train, row) for row in range(1, 6_000, 3)),
        (test, 2),
    ]
    assert audits["train"].rejected == 2_000
    assert audits["train"].reasons == {"no text: `text` missing or blank": 2_000}
    assert audits["test"].rejects == [(test, 2, "label `new` is not among the training labels")]


@pytest.mark.parametrize("seed", range(12))
def test_valid_fraction_of_few_rows_holds_out_at_least_one_text(tmp_path: Path, seed: int) -> None:
    rows = make_rows(12)
    run = run_config.parse({"storage": str(tmp_path), "data": {"train": write_csv(tmp_path / "a.csv", rows)}})
    run = run.model_copy(update={"seed": seed})
    audits, sample = scan.scan_all(run, find_sources(run), lambda stage, rows: None, io.BytesIO(), ())
    fraction = scan.valid_fraction(run, audits["train"].hashes)
    held_out = shards.validation_rows(shards.text_hashes((text,) for text, _ in rows), seed, fraction)
    assert 0 < held_out.sum() < 12
    assert sorted(sample.texts) == sorted(
        text for (text, _), is_held in zip(rows, held_out, strict=True) if not is_held
    )
    manifest = shards.load_manifest(prepare(run))
    assert manifest.splits["valid"].rows == held_out.sum()


def test_scan_all_samples_the_same_texts_from_tables_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, train=write_csv(tmp_path / "a.csv", make_rows(4_000)))
    monkeypatch.setattr(scan, "MAX_UNPACKED", 20_000 / (run.tokenizer.training_megabytes * 2**20))
    tables = pipeline.tables

    def small_tables(*arguments: Any, **settings: Any) -> Iterator[pa.Table]:
        for table in tables(*arguments, **settings):
            yield from (table.slice(start, 7) for start in range(0, table.num_rows, 7))

    _, whole = scan.scan_all(run, find_sources(run), lambda stage, rows: None, io.BytesIO())
    monkeypatch.setattr(pipeline, "tables", small_tables)
    _, parts = scan.scan_all(run, find_sources(run), lambda stage, rows: None, io.BytesIO())
    assert parts.texts == whole.texts
    assert 15_000 < sum(map(len, whole.texts)) < 21_000

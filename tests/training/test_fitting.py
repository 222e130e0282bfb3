"""A run folder begins once, and a run in this process reports its data first."""

from __future__ import annotations

from pathlib import Path

import txclf
from tests.helpers.runs import tiny
from txclf.config import run_config
from txclf.core import storage
from txclf.training import fitting
from txclf.training.job import WorkerConfig
from txclf.training.progress import Progress


def test_begin_records_run_and_data_and_keeps_them_on_resume(tmp_path: Path, data: str) -> None:
    run = tiny(tmp_path, data)
    config = WorkerConfig(run, txclf.prepare(run), encoder="/models/stored")
    fitting.begin(config)
    recorded = storage.read_object(f"{run.run_folder}/{fitting.PREPARED}")
    manifest = config.manifest()
    assert recorded == {"folder": config.prepared, "fingerprint": manifest.fingerprint, "encoder": "/models/stored"}
    assert run_config.load(f"{run.run_folder}/run.yaml").train == run.train
    fitting.begin(WorkerConfig(tiny(tmp_path, data, "train.epochs=9"), config.prepared))
    assert run_config.load(f"{run.run_folder}/run.yaml").train.epochs == 2


def test_fit_reports_the_data_first_and_returns_the_measurements(tmp_path: Path, data: str) -> None:
    run = tiny(tmp_path, data)
    config = WorkerConfig(run, txclf.prepare(run))
    seen: list[Progress] = []

    def report(progress: Progress) -> bool:
        seen.append(progress)
        return False

    stats = fitting.fit(config, report, ["a note"])
    split = config.manifest().splits["train"]
    size = f"training data: {split.rows:,} rows, {split.tokens:,} tokens, shuffled as a whole"
    assert seen[0].notes == ["a note", size]
    assert stats.steps == 2 * (split.rows // 16)
    assert seen[-1].step == stats.steps
    assert all(progress.notes[:2] == ["a note", size] for progress in seen)

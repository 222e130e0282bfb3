"""Measurements of a run: typed, frozen, and part of its summary."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.helpers.runs import trained
from txclf.core import storage
from txclf.training.run_stats import RunStats


def test_stats_are_part_of_the_summary_and_add_up(tmp_path: Path, data: str) -> None:
    run, summary = trained(tmp_path, data, "train.epochs=1")
    stats = RunStats.model_validate({name: getattr(summary, name) for name in RunStats.model_fields})
    assert stats.rows_seen == stats.steps * run.train.batch_size
    assert stats.epochs == 1.0
    assert not stats.stopped_early
    assert 0.0 <= stats.data_share <= 1.0
    parts = stats.seconds["steps"] + stats.seconds["data"] + stats.seconds["validation"] + stats.seconds["checkpoints"]
    assert parts + stats.seconds["startup"] <= stats.seconds["total"] + 0.1
    assert storage.read_json(f"{run.run_folder}/summary.json")["steps"] == stats.steps


def test_stats_are_frozen_and_complete() -> None:
    with pytest.raises(ValidationError, match="steps"):
        RunStats.model_validate({"workers": 0})

"""Checkpoints that the callbacks save, and what a resumed run restores from them."""

from __future__ import annotations

from pathlib import Path

import pytest

import txclf
from tests.helpers.runs import lines, stopped_at, tiny
from txclf.artifacts import checkpoints
from txclf.training.lr_schedule import learning_rate_factor


def test_saver_writes_everything_that_a_resumed_run_needs(tmp_path: Path, data: str) -> None:
    run = tiny(tmp_path, data, "train.checkpoint_every=3", "train.ema_decay=0.9")
    stopped_at(run, 5)
    last = checkpoints.committed(f"{run.run_folder}/checkpoints")[-1]
    content = checkpoints.load(last)
    assert set(content) == {
        "step",
        "model",
        "optimizer",
        "scaler",
        "history",
        "average",
        "unlogged",
        "skipped",
    }
    assert content["step"] == last.step >= 5
    assert set(content["average"]) == set(content["model"])


def test_restored_optimizer_takes_its_rate_from_the_schedule(tmp_path: Path, data: str) -> None:
    run = tiny(tmp_path, data, "train.checkpoint_every=3", "train.epochs=4")
    stopped_at(run, 5)
    step = checkpoints.committed(f"{run.run_folder}/checkpoints")[-1].step
    txclf.train(run, resume=True)
    total = int(lines(run)[-1]["step"])
    found = {line["step"]: line["learning_rate"] for line in lines(run) if "learning_rate" in line}
    for number in range(step + 1, total + 1):
        expected = run.train.learning_rate * learning_rate_factor(run.train, number - 1, total)
        assert found[number] == pytest.approx(expected, rel=1e-12)

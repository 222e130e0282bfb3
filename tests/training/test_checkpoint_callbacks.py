"""Checkpoints that the callbacks save, and what a resumed run restores from them."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest

import txclf
from tests.helpers.runs import lines, stopped_at, tiny
from txclf.artifacts import checkpoints
from txclf.training import worker
from txclf.training.checkpoint_callbacks import PREEMPTION_MARGIN_S, CheckpointSaver
from txclf.training.decisions import Decision
from txclf.training.job import DistributedContext
from txclf.training.lr_schedule import learning_rate_factor
from txclf.training.progress import Requests
from txclf.training.step_schedule import StepSchedule
from txclf.training.train_state import TrainState


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


def saver(folder: Path, data: str, requests: Requests) -> CheckpointSaver:
    """Return the saver of a run with 10 minutes between checkpoints, one of which was just saved."""
    run, state = tiny(folder, data), TrainState(StepSchedule(100, 1, 1.0, "10m"), step=7)
    context = DistributedContext(requests=requests)
    callbacks = worker.run_callbacks(run, state, np.atleast_1d, None, context=context, report=lambda progress: False)
    (found,) = [callback for callback in callbacks if isinstance(callback, CheckpointSaver)]
    found.saved = found.decided = time.time()
    return found


def test_decide_stop_precedes_pause_and_a_paused_rank_is_not_paused_again(tmp_path: Path, data: str) -> None:
    made = saver(tmp_path, data, Requests(pause=True))
    assert made.decide() == Decision.SAVE | Decision.PAUSE
    made.heartbeat.paused = True
    assert made.decide() == Decision.CONTINUE
    made.heartbeat.paused, made.state.stop_requested = False, True
    assert made.decide() == Decision.SAVE | Decision.STOP


def test_decide_preemption_saves_at_its_notice_and_pauses_shortly_before_its_time(tmp_path: Path, data: str) -> None:
    made = saver(tmp_path, data, Requests())
    assert made.decide() == Decision.CONTINUE
    made.requests.preempted_at = time.time() + 60
    assert [made.decide(), made.decide()] == [Decision.SAVE, Decision.CONTINUE]
    made.requests.preempted_at = made.noticed = time.time() + PREEMPTION_MARGIN_S - 1
    assert made.decide() == Decision.SAVE | Decision.PAUSE
    made.heartbeat.paused = True
    assert made.decide() == Decision.CONTINUE


def test_decide_preemption_without_a_time_saves_once(tmp_path: Path, data: str) -> None:
    made = saver(tmp_path, data, Requests(preempted_at=math.inf))
    assert [made.decide(), made.decide()] == [Decision.SAVE, Decision.CONTINUE]

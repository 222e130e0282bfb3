"""The training function of one process, without the commands around it."""

from __future__ import annotations

import gc
import time
from pathlib import Path

import pytest

import txclf
from tests.helpers.runs import go_on, tiny
from txclf.artifacts import checkpoints
from txclf.config.tasks import TASKS
from txclf.training.job import DistributedContext, WorkerConfig
from txclf.training.progress import Interrupted, Progress
from txclf.training.worker import MODULES, fit


def test_modules_has_one_class_for_each_task() -> None:
    assert set(MODULES) == set(TASKS)


def test_fit_returns_the_measurements_and_leaves_checkpoints(tmp_path: Path, data: str) -> None:
    run = tiny(tmp_path, data, "train.epochs=1")
    config = WorkerConfig(run, txclf.prepare(run), started=time.time())
    context = DistributedContext()
    stats = fit(config, None, go_on, context)
    assert (stats.workers, stats.device, stats.precision, stats.epochs) == (0, "cpu", "32-true", 1.0)
    assert context.heartbeat.step == stats.steps
    assert checkpoints.committed(f"{run.run_folder}/checkpoints")[-1].step == stats.steps
    again = fit(config, None, go_on, DistributedContext())  # a complete run trains no further
    assert (again.steps, again.tokens_per_second, again.mfu) == (stats.steps, 0.0, None)


def test_fit_of_a_resumed_run_does_not_keep_its_checkpoint_in_memory(tmp_path: Path, data: str) -> None:
    run = tiny(tmp_path, data, "train.ema_decay=0.9")
    config = WorkerConfig(run, txclf.prepare(run))
    with pytest.raises(Interrupted):
        fit(config, None, lambda progress: progress.step >= 3, DistributedContext())
    alive: list[int] = []

    def count(progress: Progress) -> bool:
        if progress.stage == "validating":
            gc.collect()
            kept = [one for one in gc.get_objects() if type(one) is dict and {"optimizer", "average"} <= one.keys()]
            alive.append(len(kept))
        return False

    fit(config, None, count, DistributedContext())
    assert alive
    assert not any(alive)


def test_fit_raises_interrupted_after_saving(tmp_path: Path, data: str) -> None:
    run = tiny(tmp_path, data)
    config = WorkerConfig(run, txclf.prepare(run))
    with pytest.raises(Interrupted):
        fit(config, None, lambda progress: True, DistributedContext())
    assert checkpoints.committed(f"{run.run_folder}/checkpoints")

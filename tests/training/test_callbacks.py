"""The callbacks of a run, seen from the outside: their order, their log and their reports."""

from __future__ import annotations

from pathlib import Path

import pytest

import txclf
from tests.helpers.runs import go_on, lines, tiny
from txclf.core.errors import TxclfError
from txclf.training import callbacks, worker
from txclf.training.data_module import ShardsDataModule
from txclf.training.job import DistributedContext
from txclf.training.module import ClassifierModule
from txclf.training.progress import Interrupted, Progress
from txclf.training.step_schedule import StepSchedule
from txclf.training.train_state import TrainState


def names(tmp_path: Path, data: str, *words: str) -> list[str]:
    run = tiny(tmp_path, data, *words)
    data_module = ShardsDataModule(run, txclf.prepare(run))
    state = TrainState(StepSchedule(data_module.steps_per_epoch, 2, 1.0, "10m"))
    context = DistributedContext()
    found = worker.run_callbacks(run, state, data_module.reader.step_rows, None, context=context, report=go_on)
    return [type(callback).__name__ for callback in found]


def test_run_callbacks_count_then_check_then_log_then_report_then_save(tmp_path: Path, data: str) -> None:
    order = names(tmp_path, data)
    wanted = ["StepCounter", "GradientGuard", "MetricLogging", "ProgressReport", "CheckpointSaver", "Stopping"]
    assert [name for name in order if name in wanted] == wanted
    assert "EMACallback" not in order
    assert names(tmp_path, data, "train.ema_decay=0.9").index("EMACallback") == 1


def test_progress_report_shows_each_validation_after_its_checkpoint(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "REPORT_INTERVAL_S", 0.0)
    run = tiny(tmp_path, data, "train.eval_every=0.5")
    seen: dict[int, bool] = {}

    def watch(progress: Progress) -> bool:
        folder = Path(run.run_folder, "checkpoints")
        committed = folder.exists() and any(f"{progress.step}" in path.name for path in folder.iterdir())
        if progress.validations not in seen:
            seen[progress.validations] = committed
        return False

    txclf.train(run, on_progress=watch)
    assert [seen[count] for count in range(1, 5)] == [True] * 4


def test_request_to_stop_is_kept_until_the_run_can_stop(tmp_path: Path, data: str) -> None:
    """The reports after it say no more that the run should stop."""
    asked: list[int] = []

    def ask_once(progress: Progress) -> bool:
        if progress.stage == "validating" and not asked:
            asked.append(progress.step)
        return progress.stage == "validating"

    run = tiny(tmp_path, data, "train.eval_every=0.5")
    with pytest.raises(Interrupted):
        txclf.train(run, on_progress=ask_once)
    assert [line["step"] for line in lines(run) if "valid_loss" in line] == asked


def test_learning_rate_in_the_log_is_that_of_the_step(tmp_path: Path, data: str) -> None:
    run = tiny(tmp_path, data, "train.schedule=constant", "train.warmup_fraction=0")
    txclf.train(run)
    rates = {line["learning_rate"] for line in lines(run) if "learning_rate" in line}
    assert rates == {run.train.learning_rate}


def test_gradient_guard_says_what_the_weights_are_where_it_looks(tmp_path: Path, data: str) -> None:
    run = tiny(tmp_path, data)
    data_module = ShardsDataModule(run, txclf.prepare(run))
    state = TrainState(StepSchedule(data_module.steps_per_epoch, 2, 1.0, "10m"))
    guard = callbacks.GradientGuard(run, state, data_module.reader.step_rows)
    module = ClassifierModule.from_data(data_module)
    module.first_bad.fill_(3)
    for step, said in (
        (3, "the weights are those of the step before"),
        (10, "found at step 10; step 3 changed no weights"),
    ):
        state.step = step
        with pytest.raises(TxclfError, match=rf"not finite at step 3 \(epoch 0\.\d+; {said}"):
            guard.require_finite(module)

"""The position of a run, new and restored from a checkpoint."""

from __future__ import annotations

from txclf.training.step_schedule import StepSchedule
from txclf.training.train_state import TrainState

SCHEDULE = StepSchedule(steps_per_epoch=10, epochs=2, eval_every=0.5, checkpoint_every="10m")


def test_from_checkpoint_without_one_is_the_start_of_a_run() -> None:
    state = TrainState.from_checkpoint(SCHEDULE, None)
    assert (state.step, state.history, state.skipped, state.logged_step) == (0, [], 0, 0)
    assert not state.complete
    assert not state.at_validation


def test_from_checkpoint_restores_step_history_and_log() -> None:
    saved = {"step": 15, "history": [{"step": 10}], "skipped": 2, "unlogged": {"step": 12}}
    state = TrainState.from_checkpoint(SCHEDULE, saved)
    assert (state.step, state.history, state.skipped, state.logged_step) == (15, [{"step": 10}], 2, 12)
    assert state.epoch == 1.5
    assert state.at_validation


def test_complete_is_true_after_the_last_step_only() -> None:
    assert not TrainState(SCHEDULE, step=19).complete
    assert TrainState(SCHEDULE, step=20).complete

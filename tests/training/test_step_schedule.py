"""Steps, validations and checkpoints of a run."""

from __future__ import annotations

import pytest

from txclf.training.step_schedule import StepSchedule


@pytest.mark.parametrize(("steps", "every"), [(10, 1.0), (10, 0.25), (3, 0.1), (7, 0.5), (1, 1.0)])
def test_next_validation_ends_each_epoch_and_never_repeats(steps: int, every: float) -> None:
    course = StepSchedule(steps, 3, every, "10m")
    met, step = [], 0
    while step < course.total_steps:
        step = course.next_validation(step)
        met.append(step)
    assert met == sorted(set(met))
    assert {steps, 2 * steps, 3 * steps} <= set(met)
    assert len(met) == 3 * min(steps, round(1 / every))
    assert all(course.next_validation(point - 1) == point for point in met)


@pytest.mark.parametrize(("every", "epochs"), [(2, [2, 4, 5]), (5, [5]), (8, [5]), (2.4, [2, 4, 5])])
def test_validations_may_be_several_epochs_apart(every: float, epochs: list[int]) -> None:
    course = StepSchedule(10, 5, every, "10m")
    met = [step for step in range(1, 51) if course.next_validation(step - 1) == step]
    assert met == [10 * epoch for epoch in epochs]

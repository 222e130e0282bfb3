"""The learning-rate schedule."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest

from txclf.config.train import Train
from txclf.training.lr_schedule import learning_rate_factor

SCHEDULES = ["one_cycle", "cosine", "linear", "constant"]


def factors(steps: int = 200, **settings: Any) -> list[float]:
    train = Train(**settings)
    return [learning_rate_factor(train, step, steps) for step in range(steps + 1)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize(("start", "end"), [(0.04, 0.0), (0.0, 0.1), (1.0, 1.0)])
def test_learning_rate_factor_rises_then_falls(schedule: str, warmup: float, start: float, end: float) -> None:
    found = factors(schedule=schedule, warmup_fraction=warmup, start_factor=start, end_factor=end)
    peak = round(warmup * 200)
    assert found[0] == pytest.approx(start if warmup else 1.0)
    assert found[peak] == 1.0
    assert found[200] == pytest.approx(1.0 if schedule == "constant" else end)
    assert all(one <= two + 1e-12 for one, two in pairwise(found[: peak + 1]))
    assert all(one >= two - 1e-12 for one, two in pairwise(found[peak:]))
    assert all(0.0 <= factor <= 1.0 for factor in found)
    assert max(abs(one - two) for one, two in pairwise(found)) < 0.12


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("linear", 25, 0.5),
        ("linear", 125, 0.55),
        ("linear", 175, 0.25),
        ("cosine", 25, 0.5),
        ("cosine", 150, 0.1 + 0.9 * 0.25),
        ("one_cycle", 10, (1 - math.cos(math.pi / 5)) / 2),
        ("one_cycle", 25, 0.5),
        ("constant", 25, 0.5),
        ("constant", 199, 1.0),
    ],
)
def test_learning_rate_factor_at_known_steps(schedule: str, step: int, expected: float) -> None:
    settings: dict[str, Any] = {"warmup_fraction": 0.25, "start_factor": 0.0, "end_factor": 0.1}
    found = factors(schedule=schedule, **settings)
    assert found[step] == pytest.approx(expected)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_learning_rate_factor_of_short_runs_is_positive(schedule: str, steps: int) -> None:
    for warmup in (0.0, 0.1, 0.5, 0.9):
        found = factors(steps, schedule=schedule, warmup_fraction=warmup)[:-1]
        assert all(0.0 < factor <= 1.0 for factor in found)

"""Speed between two looks at the timing."""

from __future__ import annotations

import pytest

from txclf.training.timing import Timing


def test_pace_covers_the_time_since_the_last_call() -> None:
    timing = Timing(steps=2.0, data=1.0, tokens=800)
    assert timing.pace(1.0, world_size=2) == {"tokens_per_second": 400.0, "data_share": 0.25}
    timing.steps, timing.data, timing.tokens = 4.0, 1.0, 900  # the step that ran then took 1 s, and one more 1 s
    assert timing.pace(0.0, world_size=2) == {"tokens_per_second": 200.0, "data_share": 0.0}


def test_pace_without_time_is_zero() -> None:
    assert Timing().pace(0.0, 1) == {"tokens_per_second": 0.0, "data_share": pytest.approx(0.0)}

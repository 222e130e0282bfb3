"""Significance: exact values, equal models, clear differences, degenerate rows."""

from __future__ import annotations

import numpy as np
import pytest

from txclf.metrics import significance


def test_mcnemar_equals_the_binomial_test_of_the_rows_on_which_the_models_differ() -> None:
    right = np.array([True] * 8 + [False] * 2 + [True] * 90)
    other = np.array([False] * 8 + [True] * 2 + [True] * 90)
    # 10 rows differ: P(X <= 2 or X >= 8) with X ~ Binomial(10, 1/2) = 2 * (1 + 10 + 45) / 1024
    assert significance.mcnemar(right, other) == pytest.approx(112 / 1024)
    assert significance.mcnemar(other, right) == pytest.approx(112 / 1024)
    assert significance.mcnemar(right, right) == 1.0
    assert significance.mcnemar(right[:0], right[:0]) == 1.0


def test_paired_bootstrap_tells_a_clear_difference_from_none() -> None:
    draw = np.random.default_rng(0)
    targets = draw.random((500, 4)) < 0.3
    good, poor = (targets ^ (draw.random(targets.shape) < share) for share in (0.05, 0.3))
    assert significance.paired_bootstrap(targets, good, poor) == pytest.approx(2 / significance.RESAMPLES)
    assert significance.paired_bootstrap(targets, poor, good) == pytest.approx(2 / significance.RESAMPLES)
    assert significance.paired_bootstrap(targets, good, good) == 1.0
    again = targets ^ (draw.random(targets.shape) < 0.05)
    assert significance.paired_bootstrap(targets, good, again) > 0.05


def test_paired_bootstrap_of_nothing_is_no_difference() -> None:
    nothing = np.zeros((0, 3), np.bool_)
    assert significance.paired_bootstrap(nothing, nothing, nothing) == 1.0
    never = np.zeros((5, 3), np.bool_)
    assert significance.paired_bootstrap(never, never, never) == 1.0

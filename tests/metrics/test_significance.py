"""Significance: exact values, equal models, no rows."""

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

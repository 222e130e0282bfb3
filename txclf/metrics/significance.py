"""Whether two accuracies differ by more than chance on the same rows; `intervals` tests macro F1."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LEVEL = 0.05
"""p-value from which on a difference may be chance."""

Bools = npt.NDArray[np.bool_]


def mcnemar(right: Bools, other_right: Bools) -> float:
    """Return the two-sided p-value of McNemar's exact test (Psychometrika 1947) of two accuracies.

    `right` and `other_right` (rows,) tell which rows each model predicted correctly.
    """
    from scipy.stats import binomtest

    only, only_other = int((right & ~other_right).sum()), int((other_right & ~right).sum())
    return float(binomtest(only, only + only_other).pvalue) if only + only_other else 1.0

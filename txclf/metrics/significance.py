"""Whether two models differ by more than chance on the same rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LEVEL = 0.05
"""p-value from which on a difference may be chance."""
RESAMPLES = 1000
MAX_CELLS = 2**28
"""Most rows times labels times resamples; larger data are resampled less often."""

Bools = npt.NDArray[np.bool_]


def mcnemar(right: Bools, other_right: Bools) -> float:
    """Return the two-sided p-value of McNemar's exact test (Psychometrika 1947) of two accuracies.

    `right` and `other_right` (rows,) tell which rows each model predicted correctly.
    """
    from scipy.stats import binomtest

    only, only_other = int((right & ~other_right).sum()), int((other_right & ~right).sum())
    return float(binomtest(only, only + only_other).pvalue) if only + only_other else 1.0


def paired_bootstrap(targets: Bools, predicted: Bools, other: Bools, seed: int = 0) -> float:
    """Return the two-sided p-value of the difference of two macro F1 scores, by resampling rows (Efron, 1979).

    `targets`, `predicted` and `other` are masks of labels (rows, labels). The smallest possible value is two divided by
    the number of resamples.
    """
    if not targets.size:
        return 1.0
    resamples = int(np.clip(MAX_CELLS // (3 * targets.size), 20, RESAMPLES))
    draw, rows = np.random.default_rng(seed), len(targets)
    parts = [np.concatenate([mask & targets, mask, targets], axis=1).astype(np.float32) for mask in (predicted, other)]
    above = 0.0
    for _ in range(resamples):
        weights = np.bincount(draw.integers(0, rows, rows), minlength=rows).astype(np.float32)
        first, second = (_macro_f1(weights @ part) for part in parts)
        above += (first > second) + (first == second) / 2
    return min(1.0, 2 * max(1.0, min(above, resamples - above)) / resamples)


def _macro_f1(sums: npt.NDArray[np.floating]) -> float:
    """Return macro F1 from the concatenated sums of hits, predictions and targets (3 x labels,)."""
    hits, predictions, targets = np.split(sums, 3)
    seen = predictions + targets > 0
    return float((2 * hits[seen] / (predictions + targets)[seen]).mean()) if seen.any() else 0.0

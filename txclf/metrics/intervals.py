"""Confidence intervals of scores, and of the difference of two models on the same rows.

The intervals are percentiles over resampled rows (Efron, 1979). Those of macro F1 are mirrored at its value (the basic
bootstrap interval; Davison and Hinkley, 1997), because resampled rows have a lower macro F1 than the rows themselves:
some of them are missing in small classes. Rows with the same true and predicted labels are equal for every score here,
so their numbers are drawn together.

Shapes: N rows, K kinds of rows, C labels, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from txclf.metrics import significance

LEVEL = 0.95
"""Coverage of the intervals."""
RESAMPLES = 1000
MIN_RESAMPLES = 200
RESAMPLES_OF_COMPARISON = 40
"""Resamples for each comparison by whose number a p-value is multiplied, so that it can be below 0.05."""
MAX_DRAWS = 2**24
"""Max kinds of rows times resamples; data with more kinds are resampled less often."""
CHUNK_DRAWS = 2**21
"""Draws that are held at once."""

Answers = npt.NDArray[Any]
"""Class ids (N,), or a mask of the labels of each row (N, C)."""
Floats = npt.NDArray[np.float64]


class Interval(NamedTuple):
    """Value of a score, or of a difference, with the ends of its confidence interval."""

    value: float
    low: float
    high: float


class Intervals(NamedTuple):
    """Intervals of the scores of a model, or of its differences to another model."""

    micro: Interval
    """Accuracy of single labels; micro F1 of sets of labels."""
    macro: Interval
    """Macro F1."""
    classes: list[Interval]
    """F1 of each class."""
    p_value: float
    """Two-sided p-value of `macro` being 0, from the same resamples; at least two divided by their number."""


class _Kinds(NamedTuple):
    """Kinds of rows: how many rows each has, and masks of its true and predicted labels as sparse matrices (K, C)."""

    rows: npt.NDArray[np.int64]
    targets: Any
    predicted: list[Any]


def of_scores(targets: Answers, predicted: Answers, classes: int, seed: int = 0) -> Intervals:
    """Return the intervals of the scores of one model."""
    return _intervals(_kinds(targets, [predicted], classes), seed)


def of_differences(
    targets: Answers, predicted: Answers, other: Answers, classes: int, comparisons: int = 1, seed: int = 0
) -> Intervals:
    """Return the intervals of the scores of a model less those of another one, on the same rows.

    With more `comparisons`, by whose number a caller multiplies the p-value, the rows are resampled more often.
    """
    return _intervals(_kinds(targets, [predicted, other], classes), seed, comparisons)


def record(
    targets: Answers, predicted: Answers, other: Answers, names: Sequence[str], micro: str = "accuracy"
) -> dict[str, Any]:
    """Return the entries of `metrics.json` about the differences of the model to the baseline `other`.

    `p_value` is that of the accuracies of single labels, and that of macro F1 of sets of labels; `f1_macro_p_value` is
    that of macro F1.
    """
    found = of_differences(targets, predicted, other, len(names))
    f1 = _scores(_kinds(targets, [other], len(names)), None)[0, 2:]
    return {
        "p_value": significance.mcnemar(predicted == targets, other == targets) if targets.ndim == 1 else found.p_value,
        "f1_macro_p_value": found.p_value,
        "difference": {micro: list(found.micro), "f1_macro": list(found.macro)},
        "per_class": {
            name: {"f1": float(score), "difference": list(difference)}
            for name, score, difference in zip(names, f1, found.classes, strict=True)
        },
    }


def _kinds(targets: Answers, predicted: Sequence[Answers], classes: int) -> _Kinds:
    """Count the kinds of rows. Rows of masks are not compared: each is a kind of its own."""
    from scipy import sparse

    if targets.ndim == 2:
        masks = [sparse.csr_array(mask).astype(np.float64) for mask in (targets, *predicted)]
        return _Kinds(np.ones(len(targets), np.int64), masks[0], masks[1:])
    kinds, rows = np.unique(np.stack([targets, *predicted], axis=1), axis=0, return_counts=True)
    ones, places = np.ones(len(kinds)), np.arange(len(kinds))
    masks = [sparse.csr_array((ones, (places, column)), shape=(len(kinds), classes)) for column in kinds.T]
    return _Kinds(rows, masks[0], masks[1:])


def _intervals(kinds: _Kinds, seed: int, comparisons: int = 1) -> Intervals:
    """Return the intervals of the columns of `_scores`."""
    values = _scores(kinds, None)[0]
    draw, total = np.random.default_rng(seed), int(kinds.rows.sum())
    least = max(MIN_RESAMPLES, comparisons * RESAMPLES_OF_COMPARISON)
    resamples = int(np.clip(MAX_DRAWS // max(1, len(kinds.rows)), least, max(least, RESAMPLES)))
    size = max(1, CHUNK_DRAWS // max(1, len(kinds.rows)))
    shares = kinds.rows / max(1, total)
    parts = [
        _scores(kinds, draw.multinomial(total, shares, min(size, resamples - start)))
        for start in range(0, resamples if total else 0, size)
    ]
    drawn = np.concatenate(parts or [values[None]])
    lowest = -1.0 if len(kinds.predicted) == 2 else 0.0
    drawn[:, 1] = np.clip(2 * values[1] - drawn[:, 1], lowest, 1.0)
    ends = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    found = [Interval(*map(float, three)) for three in zip(values, *ends, strict=True)]
    return Intervals(found[0], found[1], found[2:], _p_value(drawn[:, 1]))


def _p_value(drawn: Floats) -> float:
    """Return the two-sided p-value of a score being 0 from its resampled values (R,)."""
    above = (drawn > 0).sum() + (drawn == 0).sum() / 2
    return float(min(1.0, 2 * max(1.0, min(above, len(drawn) - above)) / len(drawn)))


def _scores(kinds: _Kinds, drawn: npt.NDArray[np.int64] | None) -> Floats:
    """Return (R, 2 + C): micro F1, macro F1 and the F1 of each class, or the differences of two models.

    `drawn` (R, K) are numbers of rows of each kind; None stands for those of the data.
    """
    rows = (kinds.rows[None] if drawn is None else drawn).T.astype(np.float64)
    support = kinds.targets.T @ rows
    found = []
    for predicted in kinds.predicted:
        counts = support + predicted.T @ rows
        hits = kinds.targets.multiply(predicted).T @ rows
        f1 = 2 * hits / np.maximum(counts, 1)
        micro = 2 * hits.sum(axis=0) / np.maximum(counts.sum(axis=0), 1)
        macro = f1.sum(axis=0) / np.maximum((counts > 0).sum(axis=0), 1)
        found.append(np.concatenate([micro[None], macro[None], f1]).T)
    return found[0] if len(found) == 1 else found[0] - found[1]

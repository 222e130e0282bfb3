"""Curves and bins of the probabilities of a split, thin enough for a page.

Shapes: N rows, C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from txclf.metrics.calibration import NUM_BINS
from txclf.reports.content import ALL_CLASSES, ClassCurves

CURVE_POINTS = 80
"""Max points of a curve."""
MAX_CLASS_CURVES = 100
"""Max classes with curves of their own: those with the most rows."""
MICRO_CELLS = 500_000
"""Max probabilities that the curves over all classes are computed from."""

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


def reliability(confidence: Floats, right: Bools) -> list[list[float]]:
    """Return mean confidence, accuracy and count of each bin of equal width that has rows."""
    bins = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    members = [bins == number for number in np.unique(bins)]
    return [[float(confidence[rows].mean()), float(right[rows].mean()), int(rows.sum())] for rows in members]


def by_class(probabilities: Floats, targets: Bools) -> list[ClassCurves]:
    """Return the curves over all classes, then those of each of the largest classes against the rest.

    Args: probabilities (N, C) and targets (N, C). A class that no row has, or every row, has no curves. There are none
    over all classes if each row has none or all of them.
    """
    sample = slice(max(1, MICRO_CELLS // probabilities.shape[1]))
    support = targets.sum(axis=0)
    largest = [number for number in np.argsort(-support, kind="stable")[:MAX_CLASS_CURVES].tolist() if support[number]]
    every = targets[sample].ravel()
    micro = [class_curves(probabilities[sample].ravel(), every, ALL_CLASSES)] if every.any() and not every.all() else []
    return micro + [
        class_curves(probabilities[:, number], targets[:, number], number)
        for number in largest
        if support[number] < len(targets)
    ]


def class_curves(scores: Floats, targets: Bools, class_id: int) -> ClassCurves:
    """Return both curves of scores (N,) against targets (N,), thinned, and the areas under the full curves."""
    from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_curve

    fpr, tpr, _ = roc_curve(targets, scores)
    precision, recall, thresholds = precision_recall_curve(targets, scores)
    thin_fpr, thin_tpr = _thinned(fpr, tpr)
    # The last point, where nothing reaches the threshold, has none.
    thin_recall, thin_precision, thin_thresholds = _thinned(recall, precision, np.append(thresholds, 1.0))
    return ClassCurves(
        class_id=class_id,
        fpr=thin_fpr,
        tpr=thin_tpr,
        auc=float(auc(fpr, tpr)),
        recall=thin_recall,
        precision=thin_precision,
        threshold=thin_thresholds,
        ap=float(average_precision_score(targets, scores)),
    )


def coverage(confidence: Floats, right: Bools) -> list[list[float]]:
    """Return (share of rows that are answered, accuracy on them, least confidence): only the most confident rows are.

    Of equal confidences, all rows are answered or none.
    """
    order = np.argsort(-confidence, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(confidence[order]) != 0, True))
    ends = ends[np.unique(np.linspace(0, len(ends) - 1, CURVE_POINTS).round().astype(int))]
    accuracy = np.cumsum(right[order])[ends] / (ends + 1)
    points = np.stack([(ends + 1) / len(order), accuracy, confidence[order][ends]], axis=1)
    return [[round(value, 4) for value in point] for point in points.tolist()]


def _thinned(x: Any, y: Any, *others: Any) -> list[list[float]]:
    """Return about `CURVE_POINTS` points evenly spaced along the curve of x and y, both ends included."""
    length = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    points = np.unique(np.searchsorted(length, np.linspace(0, length[-1], CURVE_POINTS)).clip(0, len(x) - 1))
    points = np.unique(np.concatenate([[0], points, [len(x) - 1]]))
    return [np.round(values[points].astype(np.float64), 4).tolist() for values in (x, y, *others)]

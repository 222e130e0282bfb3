"""Scores of multilabel predictions.

Shapes: N rows, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchmetrics.functional.classification import multilabel_ranking_average_precision

from txclf.metrics import calibration

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


def scores(probabilities: Floats, targets: Bools, thresholds: Floats, names: Sequence[str]) -> dict[str, Any]:
    """Return all metrics of probabilities (N, C) against targets (N, C).

    A label is predicted if its probability reaches its threshold (C,). Macro means cover the labels that occur or are
    predicted, and mean average precision those that occur. In the ranking metric (LRAP) a row without labels counts as
    correct, as in scikit-learn.
    """
    predicted = probabilities >= thresholds
    precision, recall, f1, support = _by_label(predicted, targets)
    seen = (support > 0) | predicted.any(axis=0)
    areas = np.array([average_precision(*columns) for columns in zip(probabilities.T, targets.T, strict=True)])
    clipped = probabilities.astype(np.float64).clip(1e-12, 1 - 1e-12)
    truth = torch.from_numpy(targets.astype(np.int64))
    return {
        "rows": len(targets),
        "loss": float(-np.where(targets, np.log(clipped), np.log1p(-clipped)).mean()),
        **short_scores(predicted, targets),
        "precision_macro": float(precision[seen].mean()) if seen.any() else 0.0,
        "recall_macro": float(recall[seen].mean()) if seen.any() else 0.0,
        "map": float(areas[support > 0].mean()) if targets.any() else None,
        "lrap": _ranking(probabilities, truth),
        "hamming_loss": float((predicted != targets).mean()),
        "labels_per_row": float(targets.sum() / len(targets)),
        "labels_given_per_row": float(predicted.sum() / len(predicted)),
        "calibration_error": calibration.binned_error(probabilities.ravel(), targets.ravel()),
        "per_class": {
            name: {
                "threshold": float(thresholds[i]),
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "average_precision": float(areas[i]) if support[i] else None,
                "support": int(support[i]),
            }
            for i, name in enumerate(names)
        },
    }


def short_scores(predicted: Bools, targets: Bools) -> dict[str, float]:
    """Return macro F1, micro F1 and subset accuracy of predicted labels (N, C) against targets (N, C)."""
    _, _, f1, support = _by_label(predicted, targets)
    seen = (support > 0) | predicted.any(axis=0)
    total = int(predicted.sum() + targets.sum())
    return {
        "f1_macro": float(f1[seen].mean()) if seen.any() else 0.0,
        "f1_micro": 2 * int((predicted & targets).sum()) / total if total else 0.0,
        "subset_accuracy": float((predicted == targets).all(axis=1).mean()),
    }


def average_precision(scores: Floats, targets: Bools) -> float:
    """Return the average precision of one label, from scores (N,) and targets (N,), as in scikit-learn.

    It is the mean precision at the rows with the label, in descending order of scores. Equal scores count together.
    `binned.average_precision` approximates it from counts.
    """
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(targets[order])
    if not len(hits) or not hits[-1]:
        return 0.0
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    gained = np.diff(hits[ends], prepend=0)
    return float((hits[ends] / (ends + 1) * gained).sum() / hits[-1])


def _by_label(predicted: Bools, targets: Bools) -> tuple[Any, Any, Any, Any]:
    hits, support, num_predicted = (predicted & targets).sum(axis=0), targets.sum(axis=0), predicted.sum(axis=0)
    f1 = 2 * hits / np.maximum(support + num_predicted, 1)
    return hits / np.maximum(num_predicted, 1), hits / np.maximum(support, 1), f1, support


def _ranking(probabilities: Floats, targets: torch.Tensor) -> float:
    classes = probabilities.shape[1]
    if classes < 2:
        return 1.0  # a single label has no ranking
    return float(multilabel_ranking_average_precision(torch.from_numpy(probabilities), targets, num_labels=classes))

"""Scores of rows that may have several labels, or none.

Shapes: N rows, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchmetrics.functional.classification import binary_calibration_error, multilabel_ranking_average_precision

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


def scores(probabilities: Floats, targets: Bools, thresholds: Floats, names: Sequence[str]) -> dict[str, Any]:
    """All metrics of probabilities (N, C) against targets (N, C), each label given from its threshold (C,) on.

    Macro means run over the labels that occur or are given, mean average precision over those that occur. In the
    ranking (LRAP) a row without labels counts as right, as in scikit-learn.
    """
    given = probabilities >= thresholds
    precision, recall, f1, support = _by_label(given, targets)
    seen = (support > 0) | given.any(axis=0)
    areas = np.array([average_precision(*columns) for columns in zip(probabilities.T, targets.T, strict=True)])
    there = probabilities.astype(np.float64).clip(1e-12, 1 - 1e-12)
    flat, truth = torch.from_numpy(probabilities).flatten(), torch.from_numpy(targets.astype(np.int64))
    return {
        "rows": len(targets),
        "loss": float(-np.where(targets, np.log(there), np.log1p(-there)).mean()),
        **short_scores(given, targets),
        "precision_macro": float(precision[seen].mean()) if seen.any() else 0.0,
        "recall_macro": float(recall[seen].mean()) if seen.any() else 0.0,
        "map": float(areas[support > 0].mean()) if targets.any() else None,
        "lrap": _ranking(probabilities, truth),
        "hamming_loss": float((given != targets).mean()),
        "labels_per_row": float(targets.sum() / len(targets)),
        "labels_given_per_row": float(given.sum() / len(given)),
        "calibration_error": float(binary_calibration_error(flat, truth.flatten(), n_bins=15)),
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


def short_scores(given: Bools, targets: Bools) -> dict[str, float]:
    """Macro and micro F1 and the share of rows whose labels are all right, of the labels that rows are given (N, C)."""
    _, _, f1, support = _by_label(given, targets)
    seen = (support > 0) | given.any(axis=0)
    whole = int(given.sum() + targets.sum())
    return {
        "f1_macro": float(f1[seen].mean()) if seen.any() else 0.0,
        "f1_micro": 2 * int((given & targets).sum()) / whole if whole else 0.0,
        "subset_accuracy": float((given == targets).all(axis=1).mean()),
    }


def average_precision(scores: Floats, targets: Bools) -> float:
    """Precision at each row that has the label, in the order of scores, on average; equal scores count together."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(targets[order])
    if not len(hits) or not hits[-1]:
        return 0.0
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    gained = np.diff(hits[ends], prepend=0)
    return float((hits[ends] / (ends + 1) * gained).sum() / hits[-1])


def _by_label(given: Bools, targets: Bools) -> tuple[Any, Any, Any, Any]:
    hits, support, guessed = (given & targets).sum(axis=0), targets.sum(axis=0), given.sum(axis=0)
    f1 = 2 * hits / np.maximum(support + guessed, 1)
    return hits / np.maximum(guessed, 1), hits / np.maximum(support, 1), f1, support


def _ranking(probabilities: Floats, targets: torch.Tensor) -> float:
    classes = probabilities.shape[1]
    if classes < 2:
        return 1.0  # there is nothing to rank
    return float(multilabel_ranking_average_precision(torch.from_numpy(probabilities), targets, num_labels=classes))

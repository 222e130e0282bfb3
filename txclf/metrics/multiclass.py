"""Scores of single-label predictions: accuracy, F1, confusion matrix, calibration."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchmetrics.functional.classification import (
    multiclass_auroc,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


def scores(probabilities: Floats, labels: Ints, names: Sequence[str]) -> dict[str, Any]:
    """Return all metrics of probabilities (rows, classes) against labels (rows,).

    Macro means cover the classes that occur in the labels or in the predictions, as in scikit-learn. AUROC is one class
    against the rest, over the classes that have some rows but not all. The calibration error has 15 bins of equal width
    (Guo et al., arXiv:1706.04599). `f1_minority` is the F1 of the class with the fewest rows.
    """
    classes = len(names)
    predicted = probabilities.argmax(axis=1)
    probabilities_t, labels_t = torch.from_numpy(probabilities), torch.from_numpy(labels)
    confusion = _confusion(predicted, labels, classes)
    precision, recall, f1, support = _by_class(confusion)
    seen = (confusion.sum(axis=0) + support) > 0
    scorable = (support > 0) & (support < len(labels))
    auroc = math.nan
    if scorable.any():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about classes without rows, which are left out here
            each = multiclass_auroc(probabilities_t, labels_t, classes, average=None)
        auroc = float(each[torch.from_numpy(scorable)].mean())
    chosen = np.clip(probabilities[np.arange(len(labels)), labels], 1e-12, 1.0)
    return {
        "rows": len(labels),
        "loss": float(-np.log(chosen).mean()),
        "accuracy": float((predicted == labels).mean()),
        "f1_macro": float(f1[seen].mean()),
        "f1_minority": float(f1[_rarest(f1, support)]),
        "minority": names[_rarest(f1, support)],
        "precision_macro": float(precision[seen].mean()),
        "recall_macro": float(recall[seen].mean()),
        "mcc": _matthews(confusion),
        "auroc_macro": None if math.isnan(auroc) else auroc,
        "calibration_error": float(multiclass_calibration_error(probabilities_t, labels_t, classes, n_bins=15)),
        "per_class": {
            name: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
            }
            for i, name in enumerate(names)
        },
        "confusion": confusion.tolist(),
    }


def short_scores(predicted: Ints, labels: Ints, classes: int) -> dict[str, float]:
    """Return the accuracy, the macro F1 and the F1 of the rarest class of predicted classes (rows,)."""
    confusion = _confusion(predicted, labels, classes)
    _, _, f1, support = _by_class(confusion)
    seen = (confusion.sum(axis=0) + support) > 0
    return {
        "accuracy": float((predicted == labels).mean()),
        "f1_macro": float(f1[seen].mean()),
        "f1_minority": float(f1[_rarest(f1, support)]),
    }


def _rarest(f1: Any, support: Ints) -> int:
    """Return the class with the fewest rows, at least one. Of equally rare classes, take the one with the lowest F1."""
    return min(np.flatnonzero(support).tolist(), key=lambda number: (support[number], f1[number]))


def _confusion(predicted: Ints, labels: Ints, classes: int) -> Ints:
    """Count rows by true class (first axis) and predicted class."""
    matrix = multiclass_confusion_matrix(torch.from_numpy(predicted), torch.from_numpy(labels), classes)
    return np.asarray(matrix.numpy(), np.int64)


def _matthews(confusion: Ints) -> float:
    """Return the multiclass Matthews correlation (Gorodkin, 2004), 0 if all labels or all predictions are equal."""
    support, predicted, rows = confusion.sum(axis=1), confusion.sum(axis=0), int(confusion.sum())
    spread = float(rows**2 - (predicted**2).sum()) * float(rows**2 - (support**2).sum())
    return float(np.trace(confusion) * rows - support @ predicted) / math.sqrt(spread) if spread else 0.0


def _by_class(confusion: Ints) -> tuple[Any, Any, Any, Any]:
    hits, support, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall = hits / np.maximum(predicted, 1), hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(support + predicted, 1)
    return precision, recall, f1, support

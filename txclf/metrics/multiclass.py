"""Scores of single-label predictions: accuracy, F1, confusion matrix, calibration."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torchmetrics.functional.classification import multiclass_auroc

from txclf.metrics import calibration

MAX_CELLS = 100_000
"""Max cells of a confusion matrix that are listed, the most frequent ones."""
MAX_CONFUSIONS = 20
"""Max pairs of classes that are listed by name."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


class Confusion(NamedTuple):
    """Counts of rows by true class and predicted class. Memory grows with the rows and classes, not with C x C."""

    cells: Ints
    """(K, 3), true class, predicted class and rows of each non-zero cell, by true class, then predicted class."""
    support: Ints
    """(C,), rows of each class."""
    predicted: Ints
    """(C,), rows that are predicted to be of each class."""
    hits: Ints
    """(C,), rows of each class that are predicted right."""

    @classmethod
    def of(cls, predicted: Ints, labels: Ints, classes: int) -> Self:
        """Count predicted classes (rows,) against labels (rows,)."""
        numbers, counts = np.unique(labels * classes + predicted, return_counts=True)
        cells = np.stack([numbers // classes, numbers % classes, counts], axis=1)
        support, guesses, hits = (
            np.bincount(values, minlength=classes) for values in (labels, predicted, labels[labels == predicted])
        )
        return cls(cells, support, guesses, hits)

    @property
    def seen(self) -> npt.NDArray[np.bool_]:
        """(C,), True for the classes that occur in the labels or in the predictions."""
        return (self.support + self.predicted) > 0

    @property
    def f1(self) -> npt.NDArray[np.float64]:
        """(C,), F1 of each class; 0 for a class that does not occur."""
        scores: npt.NDArray[np.float64] = 2 * self.hits / np.maximum(self.support + self.predicted, 1)
        return scores

    def listed(self) -> list[list[int]]:
        """Return the cells, or the most frequent of very many, as lists."""
        frequent = np.sort(np.argsort(-self.cells[:, 2], kind="stable")[:MAX_CELLS])
        listed: list[list[int]] = self.cells[frequent].tolist()
        return listed

    def mistakes(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return the most frequent pairs of a true and another predicted class, with their rows."""
        wrong = self.cells[self.cells[:, 0] != self.cells[:, 1]]
        frequent = wrong[np.argsort(-wrong[:, 2], kind="stable")[:MAX_CONFUSIONS]].tolist()
        return [{"label": names[true], "predicted": names[guess], "rows": rows} for true, guess, rows in frequent]


def scores(probabilities: Floats, labels: Ints, names: Sequence[str]) -> dict[str, Any]:
    """Return all metrics of probabilities (rows, classes) against labels (rows,).

    Macro means cover the classes that occur in the labels or in the predictions, as in scikit-learn. AUROC is one class
    against the rest, over the classes that have some rows but not all. The calibration error has 15 bins of equal width
    (Guo et al., arXiv:1706.04599). `f1_minority` is the F1 of the class with the fewest rows.
    """
    classes = len(names)
    predicted = probabilities.argmax(axis=1)
    probabilities_t, labels_t = torch.from_numpy(probabilities), torch.from_numpy(labels)
    confusion = Confusion.of(predicted, labels, classes)
    support, f1, seen = confusion.support, confusion.f1, confusion.seen
    precision, recall = confusion.hits / np.maximum(confusion.predicted, 1), confusion.hits / np.maximum(support, 1)
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
        "f1_minority": float(f1[_rarest(support)]),
        "minority": names[_rarest(support)],
        "precision_macro": float(precision[seen].mean()),
        "recall_macro": float(recall[seen].mean()),
        "mcc": _matthews(confusion),
        "auroc_macro": None if math.isnan(auroc) else auroc,
        "calibration_error": calibration.binned_error(probabilities.max(axis=1), predicted == labels),
        "per_class": {
            name: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
            }
            for i, name in enumerate(names)
        },
        "confusions": confusion.mistakes(names),
        "confusion_cells": confusion.listed(),
    }


def short_scores(predicted: Ints, labels: Ints, classes: int) -> dict[str, float]:
    """Return the accuracy, the macro F1 and the F1 of the rarest class of predicted classes (rows,)."""
    confusion = Confusion.of(predicted, labels, classes)
    f1 = confusion.f1
    return {
        "accuracy": float((predicted == labels).mean()),
        "f1_macro": float(f1[confusion.seen].mean()),
        "f1_minority": float(f1[_rarest(confusion.support)]),
    }


def _rarest(support: Ints) -> int:
    """Return the class with the fewest rows, at least one; of equally rare ones the first, the same for all models."""
    return min(np.flatnonzero(support).tolist(), key=lambda number: int(support[number]))


def _matthews(confusion: Confusion) -> float:
    """Return the multiclass Matthews correlation (Gorodkin, 2004), 0 if all labels or all predictions are equal."""
    support, predicted, rows = confusion.support, confusion.predicted, int(confusion.support.sum())
    spread = float(rows**2 - (predicted**2).sum()) * float(rows**2 - (support**2).sum())
    return float(confusion.hits.sum() * rows - support @ predicted) / math.sqrt(spread) if spread else 0.0

"""Multilabel ranking metrics from counts of rows per score bin: average precision, and F1 at each threshold.

Counts of several ranks add up, so the metrics of all rows follow from the sum of the counts.

Shapes: N rows, C labels, K bins of scores (cells), from low to high.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

REACH = 16.0
"""Absolute value at which logits are clamped."""
CELLS = 2049
"""Number of cells, each 1/64 wide; the last one holds `REACH`. Logit 0 is the start of the middle cell."""


def cells(logits_NC: Tensor) -> Tensor:
    """Return the cell of each logit, from 0 to `CELLS` - 1. Logits of at least 0 are in `CELLS // 2` or above."""
    clamped = logits_NC.double().nan_to_num().clamp(-REACH, REACH)
    return torch.floor((clamped + REACH) / (2 * REACH) * (CELLS - 1)).long()


def lower_end(cell: int) -> float:
    """Return the lowest logit of a cell."""
    return cell * 2 * REACH / (CELLS - 1) - REACH


def counted(logits_NC: Tensor, targets_NC: Tensor) -> Tensor:
    """Count rows by target (0 or 1), label and cell of the logit: (2, C, K) int64."""
    classes = logits_NC.shape[1]
    numbers_C = torch.arange(classes, device=logits_NC.device)
    bins = ((targets_NC > 0).long() * classes + numbers_C) * CELLS + cells(logits_NC)
    return torch.bincount(bins.flatten(), minlength=2 * classes * CELLS).reshape(2, classes, CELLS)


class Curve(NamedTuple):
    """Counts with the lower end of each cell as the threshold, (C, K) float64 each."""

    hits: Tensor
    """Rows with the label at or above the threshold."""
    guesses: Tensor
    """Rows at or above the threshold."""
    support: Tensor
    """(C, 1), rows with the label."""

    @property
    def f1(self) -> Tensor:
        """F1 at each threshold; 0 for a label that no row has and none is predicted to have."""
        return 2 * self.hits / (self.guesses + self.support).clamp(min=1)


def curve(counts: Tensor) -> Curve:
    """Return the curve of counts (2, C, K)."""
    above = counts.double().flip(-1).cumsum(-1).flip(-1)
    return Curve(above[1], above.sum(0), above[1, :, :1])


def average_precision(counts: Tensor) -> Tensor:
    """Return the average precision of each label (C,), as in scikit-learn but from counts (2, C, K).

    It is the precision at each threshold, weighted by the recall that the threshold adds; NaN for a label that no row
    has. `multilabel.average_precision` computes it from exact scores.
    """
    points = curve(counts)
    precision = points.hits / points.guesses.clamp(min=1)
    return (precision * counts[1]).sum(-1) / points.support[:, 0]


def ranking(counts: Tensor) -> dict[str, float]:
    """Return the validation metrics of the labels that occur, from counts (2, C, K).

    F1 is at the best threshold of each label, because the thresholds of the bundle are chosen on these rows too. At a
    threshold of 0.5, a rare label would score 0 for most of a run.
    """
    counts = counts[:, counts[1].sum(-1) > 0]
    if not len(counts[0]):
        return {"valid_map": 0.0, "valid_f1_macro": 0.0, "valid_f1_micro": 0.0}
    points = curve(counts)
    best, thresholds = points.f1.max(dim=1)
    hits, guesses = (values.gather(1, thresholds[:, None]).sum() for values in (points.hits, points.guesses))
    return {
        "valid_map": float(average_precision(counts).mean()),
        "valid_f1_macro": float(best.mean()),
        "valid_f1_micro": float(2 * hits / (guesses + points.support.sum())),
    }

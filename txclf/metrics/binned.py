"""How well each label's score tells the rows that have it from the others: average precision, F1 at each threshold.

All of it follows from counts of rows by score, so that counts of several ranks need only be added.

Shapes: N rows, C labels, K cells of scores, from low to high.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

REACH = 16.0
"""Logits beyond it, either way, are counted as equal."""
CELLS = 2049
"""1/64 wide, the last for `REACH` alone; 0, a probability of 0.5, is the lower end of the one in the middle."""


def cells(logits_NC: Tensor) -> Tensor:
    """The cell of each logit, from 0 to `CELLS` - 1; those of 0 and above are at least `CELLS // 2`."""
    reached = logits_NC.double().nan_to_num().clamp(-REACH, REACH)
    return torch.floor((reached + REACH) / (2 * REACH) * (CELLS - 1)).long()


def lower_end(cell: int) -> float:
    """The lowest logit of a cell."""
    return cell * 2 * REACH / (CELLS - 1) - REACH


def counted(logits_NC: Tensor, targets_NC: Tensor) -> Tensor:
    """Rows by whether they have the label (0: no, 1: yes), label and cell of their logit: (2, C, K) int64."""
    classes = logits_NC.shape[1]
    numbers_C = torch.arange(classes, device=logits_NC.device)
    places = ((targets_NC > 0).long() * classes + numbers_C) * CELLS + cells(logits_NC)
    return torch.bincount(places.flatten(), minlength=2 * classes * CELLS).reshape(2, classes, CELLS)


class Curve(NamedTuple):
    """What each cell's lower end would do as a threshold, (C, K) float64 each."""

    hits: Tensor
    """Rows with the label at or above it."""
    guesses: Tensor
    """Rows at or above it."""
    support: Tensor
    """(C, 1): rows with the label."""

    @property
    def f1(self) -> Tensor:
        """0 for a label that no row has and none is given."""
        return 2 * self.hits / (self.guesses + self.support).clamp(min=1)


def curve(counts: Tensor) -> Curve:
    """The curve of counts (2, C, K)."""
    above = counts.double().flip(-1).cumsum(-1).flip(-1)
    return Curve(above[1], above.sum(0), above[1, :, :1])


def average_precision(counts: Tensor) -> Tensor:
    """Of each label (C,), as in scikit-learn: precision at each threshold, weighed by the recall that it adds.

    Not a number for a label that no row has.
    """
    found = curve(counts)
    precision = found.hits / found.guesses.clamp(min=1)
    return (precision * counts[1]).sum(-1) / found.support[:, 0]


def ranking(counts: Tensor) -> dict[str, float]:
    """What counts of validation rows (2, C, K) say of the labels that occur.

    F1 is at each label's best threshold: that of a bundle is chosen on these rows too. At 0.5 a rare label, never
    given, would have 0 for most of a run.
    """
    there = counts[1].sum(-1) > 0
    counts = counts[:, there]
    if not len(counts[0]):
        return {"valid_map": 0.0, "valid_f1_macro": 0.0, "valid_f1_micro": 0.0}
    found = curve(counts)
    best, places = found.f1.max(dim=1)
    hits, guesses = (values.gather(1, places[:, None]).sum() for values in (found.hits, found.guesses))
    return {
        "valid_map": float(average_precision(counts).mean()),
        "valid_f1_macro": float(best.mean()),
        "valid_f1_micro": float(2 * hits / (guesses + found.support.sum())),
    }

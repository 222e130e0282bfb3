"""Temperature scaling (Guo et al., arXiv:1706.04599): one number that makes probabilities mean what they say.

Logits divided by a temperature give the same predictions, with more or less confidence in them. Where a row may have
several labels, targets are (N, C) and each label is a yes or no of its own, with the sigmoid of its logit.

Shapes: N rows, C classes.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

LIMIT = 20.0
"""A temperature lies between 1 / LIMIT and LIMIT."""
HALVINGS = 40
CHUNK_CELLS = 2**22
"""Logits in float64 at a time."""

Labels = npt.NDArray[np.integer] | npt.NDArray[np.bool_]
"""Class numbers (N,), or whether a row has each label (N, C)."""
Floats = npt.NDArray[np.float32]


def temperature(logits: Floats, labels: Labels) -> float:
    """The temperature of least cross-entropy of logits (N, C) against labels.

    1.0 where there is none between the limits: rows that are all right would have it 0, one wrong row infinite, and
    rows without any difference between the classes tell nothing.
    """
    # Cross-entropy is convex in the inverse temperature, so its slope changes sign once.
    low, high = -math.log(LIMIT), math.log(LIMIT)
    if not (_slope(logits, labels, math.exp(low)) < 0 < _slope(logits, labels, math.exp(high))):
        return 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _slope(logits, labels, math.exp(middle)) < 0 else (low, middle)
    return math.exp(-(low + high) / 2)


def _slope(logits: Floats, labels: Labels, inverse: float) -> float:
    """Of the summed cross-entropy by the inverse temperature: the expected logit less the true class's."""
    total = 0.0
    rows = max(1, CHUNK_CELLS // logits.shape[1])
    for start in range(0, len(logits), rows):
        logits_NC = torch.from_numpy(logits[start : start + rows]).double()
        if labels.ndim == 2:
            targets_NC = torch.from_numpy(labels[start : start + rows].astype(np.float64))
            # Yes or no is a choice between two, with logits z and 0: those of the wrong one less those of the true one.
            margins_NC = torch.where(targets_NC > 0, -logits_NC, logits_NC)
            total += float(((margins_NC * inverse).sigmoid() * margins_NC).sum())
            continue
        # Shifted, or rows that are surely right would leave a rest of rounding instead of 0.
        logits_NC -= logits_NC.gather(1, _index(labels[start : start + rows]))
        total += float(((logits_NC * inverse).softmax(dim=1) * logits_NC).sum())
    return total


def _index(labels: Labels) -> Tensor:
    return torch.from_numpy(labels.astype(np.int64))[:, None]


def error(logits: Floats, labels: Labels, temperature: float = 1.0) -> float:
    """Expected calibration error of logits (N, C) against labels, with 15 bins of equal width.

    Where a row may have several labels, it is that of the probability of each label of each row.
    """
    if labels.ndim == 2:
        probabilities = (torch.from_numpy(logits) / temperature).sigmoid().flatten()
        targets = torch.from_numpy(labels.astype(np.int64)).flatten()
        return float(binary_calibration_error(probabilities, targets, n_bins=15))
    probabilities_NC = (torch.from_numpy(logits) / temperature).softmax(dim=1)
    classes = logits.shape[1]
    return float(multiclass_calibration_error(probabilities_NC, _index(labels)[:, 0], classes, n_bins=15))

"""Temperature scaling (Guo et al., arXiv:1706.04599) and the expected calibration error.

Dividing logits by a temperature keeps the predictions and changes their confidence. For multilabel rows, targets are
(N, C) and each label is a binary decision with the sigmoid of its logit.

Shapes: N rows, C classes.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

LIMIT = 20.0
"""Temperatures are between 1 / LIMIT and LIMIT."""
HALVINGS = 40
"""Steps of the bisection."""
CHUNK_LOGITS = 2**22
"""Logits converted to float64 at a time."""
NUM_BINS = 15
"""Bins of the calibration error, of equal width."""
TEMPERATURES = tuple(2 ** (sixths / 6) for sixths in range(-6, 19))
"""Temperatures that `tempered_losses` tries, 0.5 to 8. They are near enough: a temperature 6 % from the best one raises
the loss by a few thousandths of it."""

Labels = npt.NDArray[np.integer] | npt.NDArray[np.bool_]
"""Class ids (N,), or a mask of the labels of each row (N, C)."""
Floats = npt.NDArray[np.float32]


def temperature(logits: Floats, labels: Labels, smoothing: float = 0.0) -> float:
    """Return the temperature that minimizes the cross-entropy of logits (N, C) against labels.

    `smoothing` is the share of each target that all classes, or both answers, have alike. With it, a minimum outside
    the limits gives the nearer one. Without, it gives 1.0, because the rows may determine no temperature: if all of
    them are classified correctly, the minimum is at 0.
    """
    # Cross-entropy is convex in the inverse temperature, so its slope changes sign once.
    low, high = -math.log(LIMIT), math.log(LIMIT)
    first, last = (_slope(logits, labels, math.exp(end), smoothing) for end in (low, high))
    if not first < 0 < last:
        return 1.0 if not smoothing or first == last else 1 / LIMIT if last < 0 else LIMIT
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _slope(logits, labels, math.exp(middle), smoothing) < 0 else (low, middle)
    return math.exp(-(low + high) / 2)


def tempered_losses(logits_BC: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropies of logits with each of the `TEMPERATURES`, summed over the rows, float64 (T,).

    `labels` are class ids (B,), or targets (B, C) of binary decisions, whose cross-entropy is averaged over the labels.
    The lowest of the sums over all rows is the loss after calibration, but for the steps between the temperatures.
    """
    losses = []
    for temperature in TEMPERATURES:
        scaled_BC = logits_BC.float() / temperature
        if labels.ndim == 2:
            each_BC = F.binary_cross_entropy_with_logits(scaled_BC, labels.float(), reduction="none")
            losses.append(each_BC.mean(dim=1).sum())
        else:
            losses.append(F.cross_entropy(scaled_BC, labels, reduction="sum"))
    return torch.stack(losses).double()


def _slope(logits: Floats, labels: Labels, inverse: float, smoothing: float) -> float:
    """Return the derivative of the summed cross-entropy by the inverse temperature.

    It is the sum of the expected logit minus the logit of the target: the true class, and a share of all classes.
    """
    total = 0.0
    rows = max(1, CHUNK_LOGITS // logits.shape[1])
    for start in range(0, len(logits), rows):
        logits_NC = torch.from_numpy(logits[start : start + rows]).double()
        if labels.ndim == 2:
            targets_NC = torch.from_numpy(labels[start : start + rows].astype(np.float64))
            # A binary decision has the logits z and 0. The margin is the wrong logit minus the true one.
            margins_NC = torch.where(targets_NC > 0, -logits_NC, logits_NC)
            total += float((((margins_NC * inverse).sigmoid() - smoothing / 2) * margins_NC).sum())
            continue
        # Subtracted first, so that rows with a probability of 1 contribute 0 instead of a rounding error.
        logits_NC -= logits_NC.gather(1, _index(labels[start : start + rows]))
        total += float((((logits_NC * inverse).softmax(dim=1) - smoothing / logits_NC.shape[1]) * logits_NC).sum())
    return total


def _index(labels: Labels) -> Tensor:
    return torch.from_numpy(labels.astype(np.int64))[:, None]


def error(logits: Floats, labels: Labels, temperature: float = 1.0) -> float:
    """Return the expected calibration error of logits (N, C) against labels.

    For multilabel rows, each label of each row counts as one binary prediction.
    """
    scaled = torch.from_numpy(logits) / temperature
    if labels.ndim == 2:
        return binned_error(scaled.sigmoid().numpy().ravel(), labels.ravel())
    confidence, predicted = scaled.softmax(dim=1).max(dim=1)
    return binned_error(confidence.numpy(), predicted.numpy() == labels)


def binned_error(confidence: Floats, right: Labels) -> float:
    """Return the expected calibration error of confidences (N,) in predictions that are right or not (N,); 0 for none.

    The sums are float64: float32 counts to 16.8 million only, and multilabel rows with many labels have more.
    """
    gaps = np.zeros(NUM_BINS)
    for start in range(0, len(confidence), CHUNK_LOGITS):
        part = slice(start, start + CHUNK_LOGITS)
        bins = np.minimum((confidence[part] * NUM_BINS).astype(np.int64), NUM_BINS - 1)
        gaps += np.bincount(bins, confidence[part].astype(np.float64) - right[part], NUM_BINS)
    return float(np.abs(gaps).sum() / max(1, len(confidence)))

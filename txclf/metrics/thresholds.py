"""Decision thresholds of multilabel models, one per label, chosen on the validation rows.

The F1-optimal threshold overfits, most of all for rare labels. So each threshold is the mean of the optimal thresholds
of resamples of the rows (bagging; Breiman, 1996). Labels with fewer than `MIN_ROWS` rows share the threshold that is
optimal for all labels together.

Shapes: N rows, C labels.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from txclf.metrics import binned

MIN_ROWS = 5
RESAMPLES = 50
DEFAULT = 0.5

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def choose(logits: Floats, targets: Bools) -> list[float]:
    """Return the thresholds (C,), as probabilities, for logits (N, C) against targets (N, C)."""
    if not targets.any():
        return [DEFAULT] * targets.shape[1]
    common = _common(logits, targets)
    draw = np.random.default_rng(0)
    weights = [draw.multinomial(len(logits), np.full(len(logits), 1 / len(logits))) for _ in range(RESAMPLES)]
    chosen = []
    for label in range(targets.shape[1]):
        hits = targets[:, label]
        is_rare = hits.sum() < MIN_ROWS
        chosen.append(common if is_rare else _bagged(logits[:, label].astype(np.float64), hits, weights))
    return [1 / (1 + math.exp(-logit)) for logit in chosen]


def _common(logits: Floats, targets: Bools) -> float:
    """Return the logit with the best F1 over all labels and rows, rounded to 1/64."""
    counts = binned.counted(torch.from_numpy(logits), torch.from_numpy(targets)).sum(dim=1, keepdim=True)
    return float(binned.lower_end(int(binned.curve(counts).f1[0].argmax())))


def _bagged(logits: Doubles, targets: Bools, weights: list[npt.NDArray[np.int64]]) -> float:
    """Return the mean over resamples of the logit with the best F1. `weights` are the row counts of each resample."""
    order = np.argsort(-logits, kind="stable")
    logits, targets = logits[order], targets[order]
    # Rows with equal scores are on the same side of a threshold.
    ends = np.flatnonzero(np.append(np.diff(logits) != 0, True))
    edges = logits[ends]
    between = np.append((edges[:-1] + edges[1:]) / 2, edges[-1] - 1)
    best = []
    for weight in weights:
        drawn = weight[order]
        hits, guesses = np.cumsum(drawn * targets)[ends], np.cumsum(drawn)[ends]
        if hits[-1]:
            best.append(between[np.argmax(2 * hits / (guesses + hits[-1]))])
    return float(np.mean(best))

"""From which probability on a label is given: one threshold for each label, chosen on the validation rows.

The threshold of best F1 on some rows fits their chances too, the more the fewer of them have the label. So it is the
mean over thresholds that are each best on a resample of the rows (bagging; Breiman, 1996). Labels of fewer than
`FEWEST` rows get the one that is best for all labels together.

Shapes: N rows, C labels.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from txclf.metrics import binned

FEWEST = 5
RESAMPLES = 50
DEFAULT = 0.5

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def choose(logits: Floats, targets: Bools) -> list[float]:
    """Thresholds (C,), as probabilities, for logits (N, C) against targets (N, C)."""
    if not targets.any():
        return [DEFAULT] * targets.shape[1]
    common = _common(logits, targets)
    draw = np.random.default_rng(0)
    weights = [draw.multinomial(len(logits), np.full(len(logits), 1 / len(logits))) for _ in range(RESAMPLES)]
    found = []
    for label in range(targets.shape[1]):
        hits = targets[:, label]
        few = hits.sum() < FEWEST
        found.append(common if few else _bagged(logits[:, label].astype(np.float64), hits, weights))
    return [1 / (1 + math.exp(-logit)) for logit in found]


def _common(logits: Floats, targets: Bools) -> float:
    """The logit of best F1 over all labels of all rows, to 1/64."""
    counts = binned.counted(torch.from_numpy(logits), torch.from_numpy(targets)).sum(dim=1, keepdim=True)
    return float(binned.lower_end(int(binned.curve(counts).f1[0].argmax())))


def _bagged(logits: Doubles, targets: Bools, weights: list[npt.NDArray[np.int64]]) -> float:
    """The mean over resamples, each given by how often it has each row, of the logit of best F1."""
    order = np.argsort(-logits, kind="stable")
    logits, targets = logits[order], targets[order]
    # Equal scores are given together or not at all.
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

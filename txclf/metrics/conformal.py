"""Split conformal prediction: sets of labels that hold the true one with a chosen probability, the coverage.

A label is in the set if its probability reaches a minimum, which is a quantile of the probabilities that held-out rows
give to their true labels. Of all such methods this one has the smallest sets on average (LAC; Sadinle et al.,
arXiv:1609.00451). New rows that are drawn as the held-out ones have their true label in the set with at least the
coverage, whatever the model is.

Shapes: N rows, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

MAX_QUANTILES = 1000
"""Quantiles of a table. More rows give the next higher coverage in steps of 1 / `MAX_QUANTILES`."""
MARGIN = 1e-5
"""Relative reduction of a minimum, because batches of other rows round the same probability differently."""

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.integer]
Bools = npt.NDArray[np.bool_]


def table(probabilities: Floats, labels: Ints) -> list[float]:
    """Return the quantiles of the probabilities (N, C) of the true labels (N,), in descending order.

    There are N of them, at most `MAX_QUANTILES`; the last is the smallest probability.
    """
    rows = len(labels)
    size = min(rows, MAX_QUANTILES)
    true = np.sort(probabilities[np.arange(rows), labels].astype(np.float64))[::-1]
    ranks = [_ceil_div(i * rows, size) for i in range(1, size + 1)]
    return [float(f"{true[rank - 1] * (1 - MARGIN):.5e}") for rank in ranks]


def minimum(quantiles: Sequence[float], rows: int, coverage: float) -> float:
    """Return the minimum probability of a label in a set, from the `table` of `rows` rows.

    Returns 0, which every label reaches, if the rows are too few for the coverage.
    """
    # As a decimal fraction, because 100 * 0.07 is more than 7 in floating point.
    rank = math.ceil((rows + 1) * Fraction(str(float(coverage))))
    return quantiles[_ceil_div(rank * len(quantiles), rows) - 1] if rank <= rows else 0.0


def members(probabilities: Floats, minimum: float) -> Bools:
    """Return the labels in the sets (N, C) of probabilities (N, C); the most probable label always is."""
    found = probabilities >= minimum
    found[np.arange(len(found)), probabilities.argmax(axis=1)] = True
    return found


def scores(members: Bools, labels: Ints) -> dict[str, float]:
    """Return the share of sets (N, C) that hold the true label (N,), and their mean size."""
    return {
        "coverage": float(members[np.arange(len(labels)), labels].mean()),
        "mean_size": float(members.sum(axis=1).mean()),
    }


def _ceil_div(value: int, divisor: int) -> int:
    return -(-value // divisor)

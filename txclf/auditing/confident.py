"""Confident learning: which given labels are probably wrong (Northcutt, Jiang and Chuang, JAIR 2021, arXiv:1911.00068).

A row is a confident example of a label if its probability reaches the threshold of the label: the mean probability of
the label among the rows that have it. The confident examples of another label than the given one, which are off the
diagonal of the paper's confident joint, say how many labels are wrong. As many rows are suspects: those with the lowest
probability of the given label ("self-confidence").

The paper also prunes these examples themselves, or by the noise rate of each pair of labels. Planted errors were found
with a higher F1 by self-confidence (`benchmarks/label_errors.py`), most of all with many labels; with two labels it was
equal to pruning the examples.

Shapes: N rows, C classes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from txclf.ngrams.linear import Floats

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
TOLERANCE = 1e-6
"""Distance to a threshold at which a probability reaches it, because all rows of a label may have the same one."""


def thresholds(probabilities: Floats, labels: Ints) -> Floats:
    """Return the mean probability of each class among the rows that have it (C,); infinity for a class without rows."""
    classes = probabilities.shape[1]
    own = probabilities[np.arange(len(labels)), labels]
    rows, sums = np.bincount(labels, minlength=classes), np.bincount(labels, own, minlength=classes)
    return np.where(rows > 0, sums / np.maximum(rows, 1), np.inf).astype(np.float32)


def suspects(probabilities: Floats, labels: Ints) -> Bools:
    """Return a mask (N,) of the rows whose label is probably wrong.

    `probabilities` (N, C) are those of models that were not trained on the row. A row whose given label is the
    likeliest one is no suspect.
    """
    is_confident = probabilities >= thresholds(probabilities, labels) - TOLERANCE
    confident_label = np.where(is_confident, probabilities, -1.0).argmax(axis=1)
    is_doubtful = probabilities.argmax(axis=1) != labels
    count = int((is_confident.any(axis=1) & (confident_label != labels) & is_doubtful).sum())
    doubtful = np.flatnonzero(is_doubtful)
    own = probabilities[doubtful, labels[doubtful]]
    found = np.zeros(len(labels), np.bool_)
    found[doubtful[np.argsort(own, kind="stable")[:count]]] = True
    return found


def suspect_labels(probabilities: Floats, targets: Bools) -> Bools:
    """Return a mask (N, C) of the yes and no answers that are probably wrong: each label is two classes by itself.

    `targets` (N, C) is the mask of the labels of each row, `probabilities` (N, C) are those of each label by itself.
    """
    columns = [
        suspects(
            np.stack([1 - probabilities[:, label], probabilities[:, label]], axis=1), targets[:, label].astype(int)
        )
        for label in range(targets.shape[1])
    ]
    return np.stack(columns, axis=1)

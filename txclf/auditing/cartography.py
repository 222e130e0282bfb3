"""Dataset cartography: how a model learns each row while it trains (Swayamdipta et al., EMNLP 2020, arXiv:2009.10795).

The confidence of a row is the mean probability of its labels after each epoch, its variability the standard deviation.
Rows of high confidence are easy; of low confidence hard, many of them with a wrong label; rows of high variability are
ambiguous, and the model learns most from them. Here the model is linear on n-grams, trained on all rows at once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from txclf.metrics.calibration import Labels
from txclf.ngrams.linear import Floats

EPOCHS = 8
LEARNING_RATE = 0.5
"""Of plain stochastic gradient descent, on rows of length 1."""


class Map(NamedTuple):
    """Coordinates of each row (rows,)."""

    confidence: Floats
    """Mean probability of the labels of the row over the epochs; of several labels, of the least likely yes or no."""
    variability: Floats
    """Standard deviation of that probability over the epochs."""


def data_map(matrix: Any, labels: Labels, num_labels: int) -> Map:
    """Return the coordinates of rows with the features `matrix` (rows, n-grams), a scipy CSR matrix.

    `labels` are class ids (rows,), or a mask of the labels of each row (rows, labels).
    """
    from scipy.sparse import csr_matrix

    if not matrix.shape[1]:  # no n-gram occurs often enough
        matrix = csr_matrix((len(labels), 1), dtype=np.float32)
    targets = labels if labels.ndim == 2 else np.eye(num_labels, dtype=np.bool_)[labels]
    models = _models(targets)
    random = np.random.default_rng(0)
    total, squares = np.zeros((2, len(labels)), np.float64)
    for _ in range(EPOCHS):
        order = random.permutation(len(labels))
        shuffled = matrix[order]
        logits = np.zeros(targets.shape, np.float32)
        for label, model in enumerate(models):
            if model is None:
                logits[:, label] = np.where(targets[:, label], np.inf, -np.inf)  # the label of every row, or of none
                continue
            model.partial_fit(shuffled, targets[order, label], classes=(False, True))
            logits[:, label] = model.decision_function(matrix)
        probabilities = _of_given(logits, targets, is_single=labels.ndim == 1)
        total += probabilities
        squares += probabilities**2
    mean = total / EPOCHS
    return Map(mean.astype(np.float32), np.sqrt(np.maximum(squares / EPOCHS - mean**2, 0)).astype(np.float32))


def _models(targets: Any) -> list[Any]:
    """Return a model for each label, None where all rows agree."""
    from sklearn.linear_model import SGDClassifier

    return [
        SGDClassifier(
            loss="log_loss", penalty=None, learning_rate="constant", eta0=LEARNING_RATE, shuffle=False, random_state=0
        )
        if column.any() and not column.all()
        else None
        for column in targets.T
    ]


def _of_given(logits: Floats, targets: Any, *, is_single: bool) -> Any:
    """Return the probability of the labels of each row (rows,)."""
    with np.errstate(over="ignore"):
        each = 1 / (1 + np.exp(-logits.astype(np.float64)))
    if is_single:  # one against the rest, as shares of their sum
        return each[targets] / np.maximum(each.sum(axis=1), 1e-12)
    return np.where(targets, each, 1 - each).min(axis=1)

"""Out-of-fold probabilities: what a model says of rows that it was not trained on.

The model is the linear one on n-grams, which trains in seconds. Its features and the cost of errors are chosen once, on
the first fold, and one temperature is fitted to the logits of all folds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from txclf.core.hashing import UInt64s, mix, uniform
from txclf.metrics import calibration
from txclf.metrics.calibration import Labels
from txclf.ngrams import fitting
from txclf.ngrams.blend import calibrated
from txclf.ngrams.linear import Floats

Ints = npt.NDArray[np.int64]
CHUNK_ROWS = 8192
"""Rows that are scored at a time."""


class OutOfFold(NamedTuple):
    """Answers of the models of all folds."""

    probabilities: Floats
    """Calibrated probabilities (rows, labels); for several labels per text each by itself."""
    choice: fitting.Choice
    """Features and cost, chosen on the first fold."""
    temperature: float


def assign(hashes: UInt64s, groups: Ints, num_folds: int) -> Ints:
    """Return the fold of each row (rows,), by the lowest hash of its group: rows of one group are in one fold.

    No fold is empty if there are enough groups: where the hashes leave one empty, the groups are dealt out in turn.
    """
    lowest = np.full(int(groups.max()) + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(lowest, groups, hashes)
    folds = (uniform(mix(lowest ^ mix(np.uint64(4)))) * num_folds).astype(np.int64)
    if len(np.unique(folds)) < num_folds:
        folds[np.argsort(lowest)] = np.arange(len(lowest)) % num_folds
    return folds[groups]


def out_of_fold(
    texts: Sequence[str],
    labels: Labels,
    folds: Ints,
    *,
    num_labels: int,
    lowercase: bool = True,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> OutOfFold:
    """Return the probabilities of each row by a model that was trained on the other folds.

    `labels` are class ids (rows,), or a mask of the labels of each row (rows, labels). `report` receives the number of
    folds done, and of all folds.
    """
    num_folds = int(folds.max()) + 1
    logits = np.zeros((len(texts), num_labels), np.float32)
    choice: fitting.Choice | None = None
    for fold in range(num_folds):
        report(fold, num_folds)
        is_held = folds == fold
        train, held = list(compress(texts, ~is_held)), list(compress(texts, is_held))
        if choice is None:
            choice = fitting.choose(
                *(train, labels[~is_held], held, labels[is_held]), num_labels=num_labels, lowercase=lowercase
            )
            model = choice.model
        else:
            model = fitting.refit(choice, train, labels[~is_held], num_labels=num_labels)
        chunks = [model.logits(held[start : start + CHUNK_ROWS]) for start in range(0, len(held), CHUNK_ROWS)]
        logits[is_held] = np.concatenate(chunks)
    assert choice is not None
    temperature = calibration.temperature(logits, labels)
    scaled = calibrated(logits, temperature, labels.ndim == 2)
    probabilities = 1 / (1 + np.exp(-scaled)) if labels.ndim == 2 else np.exp(scaled)
    return OutOfFold(probabilities.astype(np.float32), choice, temperature)

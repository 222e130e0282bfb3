"""Baselines for the scores of a model: the majority class, and the strongest linear model on n-grams."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from txclf.metrics.calibration import Labels
from txclf.ngrams import fitting
from txclf.ngrams.blend import Blend, NgramShare
from txclf.ngrams.linear import Floats, NgramModel

NAME = "n-gram linear model"

Ints = npt.NDArray[np.int64]


class Rows(NamedTuple):
    """Labelled texts."""

    texts: Sequence[str]
    labels: Labels
    """Class ids (rows,), or a mask of the labels of each row (rows, labels)."""


class Baseline(NamedTuple):
    """Logits of the linear model for the scored rows, and how it came about."""

    logits: Floats
    """Calibrated logits (rows, labels)."""
    features: str
    """Weighting and n-grams of the linear model."""
    train_rows: int
    """Training rows of the linear model."""
    seconds: float
    """Seconds of choosing, training and prediction; of prediction alone if the run has trained it."""

    def record(self, of_train_rows: int) -> dict[str, Any]:
        """Return the entries of `metrics.json` that describe the model."""
        return {
            "model": f"{NAME}: {self.features}",
            "train_rows": self.train_rows,
            "of_train_rows": of_train_rows,
            "seconds": round(self.seconds, 2),
        }


def majority(train_labels: Ints, scored_rows: int) -> Ints:
    """Predict the most frequent training label for every row (rows,)."""
    return np.full(scored_rows, np.bincount(train_labels).argmax(), np.int64)


def ngrams(
    train: Rows,
    valid: Rows,
    texts: Sequence[str],
    *,
    num_labels: int,
    lowercase: bool = True,
    by_macro_f1: bool = False,
) -> Baseline:
    """Choose a linear model on the validation rows, as `txclf.ngrams.fitting.choose` does, and score `texts`."""
    start = time.monotonic()
    choice = fitting.choose(
        *(train.texts, train.labels, valid.texts, valid.labels),
        num_labels=num_labels,
        lowercase=lowercase,
        by_macro_f1=by_macro_f1,
    )
    logits = choice.model.logits(texts) / np.float32(choice.model.temperature)
    return Baseline(logits, _features(choice.model), choice.train_rows, time.monotonic() - start)


def ngrams_of_bundle(blend: Blend, texts: Sequence[str]) -> Baseline:
    """Score `texts` with the linear model of a bundle, which was chosen on the same rows as `ngrams` would."""
    start = time.monotonic()
    scores = blend.scores(texts)
    return Baseline(scores, _features(blend.share), blend.share.train_rows, time.monotonic() - start)


def _features(model: NgramModel | NgramShare) -> str:
    """Return for example `TF-IDF of words, word pairs and characters`."""
    analyzer = model.analyzer
    grams = ["words", "word pairs", "word triples"][: analyzer.words] + ["characters"] * bool(analyzer.characters)
    weighting = {"tfidf": "TF-IDF", "naive bayes": "naive Bayes"}[model.weighting]
    return f"{weighting} of {', '.join(grams[:-1])} and {grams[-1]}"

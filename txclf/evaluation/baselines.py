"""Simple baselines for the scores of a model: the majority class and an n-gram logistic regression."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

MAX_ROWS = 100_000
"""Max training rows of the logistic regression. It uses the first rows, which are shuffled."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


class Baseline(NamedTuple):
    """Predictions of a single-label baseline for the scored rows."""

    predictions: Ints
    """Class ids (rows,)."""
    train_rows: int
    """Training rows used."""
    seconds: float
    """Seconds of training and prediction."""


class MultilabelBaseline(NamedTuple):
    """Logits of a multilabel baseline for the scored rows."""

    logits: Floats
    """Logits (rows, labels)."""
    train_rows: int
    """Training rows used."""
    seconds: float
    """Seconds of training and prediction."""


def majority(train_labels: Ints, scored_rows: int) -> Ints:
    """Predict the most frequent training label for every row (rows,)."""
    return np.full(scored_rows, np.bincount(train_labels).argmax(), np.int64)


def logistic_regression(
    train_texts: Sequence[str], train_labels: Ints, texts: Sequence[str], lowercase: bool = True
) -> Baseline:
    """Train a logistic regression on TF-IDF features of words and word pairs, and predict `texts`.

    Wang and Manning, Baselines and Bigrams (ACL 2012), show that such linear models are strong for topics and
    sentiment. The majority class is predicted if the training rows have one label or no words.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    start = time.monotonic()
    train_texts, train_labels = train_texts[:MAX_ROWS], train_labels[:MAX_ROWS]
    features = _features(train_texts, lowercase) if len(np.unique(train_labels)) > 1 else None
    if features is None:
        return Baseline(majority(train_labels, len(texts)), len(train_texts), time.monotonic() - start)
    vectorizer, train_features = features
    # On AG News SAGA is as good after 30 passes as L-BFGS after 100 steps, in a third of the time.
    model = LogisticRegression(C=10.0, solver="saga", max_iter=30, tol=1e-3, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(train_features, train_labels)
    predictions = model.predict(vectorizer.transform(texts)) if len(texts) else np.empty(0)
    return Baseline(np.asarray(predictions, np.int64), len(train_texts), time.monotonic() - start)


def one_vs_rest(
    train_texts: Sequence[str], train_targets: Bools, texts: Sequence[str], lowercase: bool = True
) -> MultilabelBaseline:
    """Train one logistic regression per label on the same features, and return the logits of `texts`.

    `train_targets` has the shape (rows, labels). The logits of a label that no training row has, or every one, are
    those of its share of the training rows.
    """
    from sklearn.linear_model import LogisticRegression

    start = time.monotonic()
    train_texts, train_targets = train_texts[:MAX_ROWS], train_targets[:MAX_ROWS]
    shares = train_targets.mean(axis=0, dtype=np.float32).clip(1e-6, 1 - 1e-6)
    logits: Floats = np.tile(np.log(shares / (1 - shares)), (len(texts), 1))
    features = _features(train_texts, lowercase)
    if features and texts:
        vectorizer, train_features = features
        scored_features = vectorizer.transform(texts)
        for label in np.flatnonzero(train_targets.any(axis=0) & ~train_targets.all(axis=0)):
            model = LogisticRegression(C=10.0, solver="liblinear", random_state=0)
            model.fit(train_features, train_targets[:, label])
            logits[:, label] = model.decision_function(scored_features)
    return MultilabelBaseline(logits, len(train_texts), time.monotonic() - start)


def _features(texts: Sequence[str], lowercase: bool) -> tuple[Any, Any] | None:
    """Return the fitted vectorizer and the features of the training texts; None if the texts contain no word."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2),
        min_df=2 if len(texts) > 1000 else 1,
        sublinear_tf=True,
        lowercase=lowercase,
        # Single characters are words too: in many languages, and in code.
        token_pattern=r"\b\w+\b",
    )
    try:
        return vectorizer, vectorizer.fit_transform(texts)
    except ValueError:  # the training texts contain no word
        return None

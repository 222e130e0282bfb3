"""The honest baselines that stand beside a model: the majority class and an n-gram logistic regression."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MAX_ROWS = 100_000
"""Training rows beyond which the logistic regression learns from the first ones (they are shuffled)."""

Ints = npt.NDArray[np.int64]


class Baseline(NamedTuple):
    """What a baseline predicts for the scored rows."""

    predictions: Ints
    train_rows: int
    seconds: float


def majority(train_labels: Ints, scored_rows: int) -> Ints:
    """The most frequent training label, for every row."""
    return np.full(scored_rows, np.bincount(train_labels).argmax(), np.int64)


def logistic_regression(
    train_texts: Sequence[str], train_labels: Ints, texts: Sequence[str], lowercase: bool = True
) -> Baseline:
    """TF-IDF of words and word pairs, then logistic regression (scikit-learn's defaults otherwise).

    As in Wang and Manning, Baselines and Bigrams (ACL 2012), a strong linear baseline for topics and sentiment.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    start = time.monotonic()
    train_texts, train_labels = train_texts[:MAX_ROWS], train_labels[:MAX_ROWS]
    if len(np.unique(train_labels)) < 2:
        return Baseline(majority(train_labels, len(texts)), len(train_texts), time.monotonic() - start)
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2),
        min_df=2 if len(train_texts) > 1000 else 1,
        sublinear_tf=True,
        lowercase=lowercase,
        # Single characters are words too: in many languages, and in code.
        token_pattern=r"\b\w+\b",
    )
    try:
        features = vectorizer.fit_transform(train_texts)
    except ValueError:  # no word at all in the training texts
        return Baseline(majority(train_labels, len(texts)), len(train_texts), time.monotonic() - start)
    # On AG News SAGA is as good after 30 passes as L-BFGS after 100 steps, in a third of the time.
    model = LogisticRegression(C=10.0, solver="saga", max_iter=30, tol=1e-3, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, train_labels)
    predictions = model.predict(vectorizer.transform(texts)) if len(texts) else np.empty(0)
    return Baseline(np.asarray(predictions, np.int64), len(train_texts), time.monotonic() - start)

"""Whether new rows are drawn as the known ones: lengths, predicted labels, vectors and words.

Shapes: N known rows, M new rows, C classes, D values of a vector.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FOLDS = 5
PRIOR_WORDS = 500.0
"""Weight of the prior of `typical_words`, in occurrences of words."""

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]


class Difference(NamedTuple):
    """Size of a difference, and the probability of one at least as large among rows that are drawn alike."""

    value: float
    p_value: float


def of_labels(known: Ints, new: Ints) -> Difference:
    """Return the total variation distance of two label counts (C,), 0 to 1. The p-value is of the chi-squared test."""
    from scipy.stats import chi2_contingency

    distance = float(np.abs(known / max(1, known.sum()) - new / max(1, new.sum())).sum() / 2)
    seen = known + new > 0
    if seen.sum() < 2 or not (known.any() and new.any()):
        return Difference(distance, 1.0)
    return Difference(distance, float(chi2_contingency(np.stack([known, new])[:, seen]).pvalue))


def of_lengths(known: Ints, new: Ints) -> Difference:
    """Return the largest difference of the shares of rows up to a length (Kolmogorov-Smirnov), (N,) and (M,)."""
    from scipy.stats import ks_2samp

    found = ks_2samp(known, new)
    return Difference(float(found.statistic), float(found.pvalue))


def of_vectors(known: Floats, new: Floats, seed: int = 0) -> tuple[Difference, Floats]:
    """Return how well a linear model tells new vectors (M, D) from known ones (N, D), a classifier two-sample test.

    The value is the area under the ROC curve of rows that the model was not trained on: 0.5 where nothing tells them
    apart, 1 where everything does (Lopez-Paz and Oquab, arXiv:1610.06545). The p-value is Mann and Whitney's. The
    second result is the model's probability that each new row is new (M,).
    """
    num_folds = min(FOLDS, len(known), len(new))
    if num_folds < 2:
        return Difference(0.5, 1.0), np.full(len(new), 0.5)
    from scipy.stats import mannwhitneyu
    from sklearn.linear_model import LogisticRegression

    vectors = np.concatenate([known, new]).astype(np.float64)
    vectors = (vectors - vectors.mean(axis=0)) / (vectors.std(axis=0) + 1e-9)
    is_new = np.repeat([False, True], [len(known), len(new)])
    # Each side has every fold, so that both are in each training part.
    random = np.random.default_rng(seed)
    folds = np.concatenate([random.permutation(np.arange(len(side)) % num_folds) for side in (known, new)])
    scores = np.empty(len(vectors))
    for fold in range(num_folds):
        held_out = folds == fold
        model = LogisticRegression(C=0.01, class_weight="balanced", max_iter=200)
        model.fit(vectors[~held_out], is_new[~held_out])
        scores[held_out] = model.predict_proba(vectors[held_out])[:, 1]
    found = mannwhitneyu(scores[is_new], scores[~is_new])
    return Difference(float(found.statistic) / (len(known) * len(new)), float(found.pvalue)), scores[is_new]


def typical_words(known: Iterable[Iterable[str]], new: Iterable[Iterable[str]], most: int) -> list[str]:
    """Return the words that new rows have more often than known ones, the most telling first, at most `most`.

    They are ranked by the z-score of the difference of their log odds, with all words as the prior (Monroe et al.,
    Fightin' Words, Political Analysis 2008); only those above 3 are returned. A word counts once for a row.
    """
    before, after = (Counter(word for row in rows for word in set(row)) for rows in (known, new))
    everything = before + after
    total, totals = everything.total(), (before.total(), after.total())

    def z_score(word: str) -> float:
        prior = PRIOR_WORDS * everything[word] / total
        odds = [
            math.log((count + prior) / max(size + PRIOR_WORDS - count - prior, prior))
            for count, size in zip((before[word], after[word]), totals, strict=True)
        ]
        return (odds[1] - odds[0]) / math.sqrt(1 / (before[word] + prior) + 1 / (after[word] + prior))

    ranked = sorted(((z_score(word), word) for word in after), reverse=True)
    return [word for score, word in ranked[:most] if score > 3]

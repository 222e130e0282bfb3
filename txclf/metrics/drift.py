"""Tests whether new rows are drawn as the known ones: lengths, predicted labels, vectors and words.

Shapes: N known rows, M new rows, S of both, C classes, D values of a vector, K values, R permutations.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

FOLDS = 5
PERMUTATIONS, CHUNK = 5000, 250
"""Permutations of a test, and those that are held at once."""
PRIOR_WORDS = 500.0
"""Weight of the prior of `typical_words`, in occurrences of words."""

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Difference(NamedTuple):
    """Size of a difference, and the probability of one at least as large among rows that are drawn alike."""

    value: float
    p_value: float


def of_labels(known: Bools, new: Bools, *, is_multilabel: bool = False) -> Difference:
    """Return the distance of the labels of known rows (N, C) and new ones (M, C), with the p-value of permutations.

    It is the share of rows that would need another label to make both alike (total variation distance). If multilabel,
    it is the largest difference of the shares of the rows that have a label.
    """

    def distances(known_shares_RC: Floats, new_shares_RC: Floats) -> Floats:
        gaps_RC = np.abs(known_shares_RC - new_shares_RC)
        found_R: Floats = gaps_RC.max(axis=1) if is_multilabel else gaps_RC.sum(axis=1) / 2
        return found_R

    return _permuted(known, new, lambda sums, others: distances(sums / len(known), others / len(new)))


def of_unseen(known: Ints, new: Ints) -> Difference:
    """Return how much larger the share of unseen words is in new rows, with the p-value of a permutation test.

    The counts (N, 2) and (M, 2) are the unseen words and all words of each row.
    """

    def differences(known_R2: Floats, new_R2: Floats) -> Floats:
        before_R: Floats = known_R2[:, 0] / np.maximum(1, known_R2[:, 1])
        after_R: Floats = new_R2[:, 0] / np.maximum(1, new_R2[:, 1])
        larger_R: Floats = after_R - before_R
        return larger_R

    return _permuted(known, new, differences)


def _permuted(known: Any, new: Any, statistic: Callable[[Floats, Floats], Floats]) -> Difference:
    """Return a statistic of the sums of known values (N, K) and new ones (M, K), with its p-value.

    `statistic` maps sums (R, K) of both sides to (R,). The p-value is the share of random divisions of the rows into N
    and M for which it is at least as large.
    """
    from scipy import sparse

    if not len(known) or not len(new):
        return Difference(0.0, 1.0)
    values_SK = sparse.csr_array(np.concatenate([known, new]).astype(np.float64))
    total_1K = np.asarray(values_SK.sum(axis=0))[None]
    sums_1K = np.asarray(new, np.float64).sum(axis=0)[None]
    value = float(statistic(total_1K - sums_1K, sums_1K)[0])
    random, count = np.random.default_rng(0), 0
    for _ in range(0, PERMUTATIONS, CHUNK):
        order = random.random((CHUNK, values_SK.shape[0])).argpartition(len(new) - 1, axis=1)[:, : len(new)]
        is_new_RS = np.zeros((CHUNK, values_SK.shape[0]))
        np.put_along_axis(is_new_RS, order, 1.0, axis=1)
        sums_RK = is_new_RS @ values_SK
        count += int((statistic(total_1K - sums_RK, sums_RK) >= value - 1e-9).sum())
    return Difference(value, (count + 1) / (PERMUTATIONS + 1))


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

"""Linear models on n-grams: their features and the exact reasons of an answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.helpers.topics import make
from txclf.ngrams import linear
from txclf.ngrams.features import Analyzer, count
from txclf.ngrams.fitting import fit


def test_features_have_length_one_in_words_and_in_characters() -> None:
    both = Analyzer(words=2, characters=(2, 3))
    counts = count([*make(20)[0], "", "!"], both)
    matrix = linear.features(counts, "tfidf", np.full(len(counts.keys), 2.0, np.float32))
    norms = np.sqrt(matrix.multiply(matrix).sum(axis=1)).A1
    assert norms[:20] == pytest.approx(np.sqrt(2.0), rel=1e-5)
    assert norms[20] == 0.0


@pytest.mark.parametrize("weighting", ["tfidf", "naive bayes"])
def test_contributions_sum_to_the_logits(weighting: Any) -> None:
    texts, labels = make(200)
    both = Analyzer(words=2, characters=(2, 4))
    model = fit(count(texts, both), labels, num_labels=3, analyzer=both, weighting=weighting, cost=1.0)
    for text in [*texts[:5], "unknown", ""]:
        total = model.bias + sum(model.contributions(text).values(), np.zeros(3, np.float32))
        assert total == pytest.approx(model.logits([text])[0], abs=1e-4)
    best = max(model.contributions("the goal was it").items(), key=lambda item: item[1][0])
    assert "go" in best[0]

"""Similarity to the nearest training row: of equal texts, of those without a common word, and of many."""

from __future__ import annotations

import numpy as np
import pytest

from txclf.auditing import nearest
from txclf.auditing.nearest import similarity

TEXTS = ["a goal for the team", "a goal for the team", "the team and a match", "xyzzy", "", "Goal for the team a"]


def test_similarity_is_that_of_the_nearest_other_training_row() -> None:
    found = similarity(TEXTS, np.array([True, True, True, True, True, False]))
    assert found[:2].tolist() == pytest.approx([1, 1])
    assert found[5] == pytest.approx(1)  # case and order do not count
    assert 0.2 < found[2] < 0.8
    assert found[3:5].tolist() == [0, 0]
    alone = similarity(TEXTS, np.array([True, False, False, False, False, False]))
    assert alone[0] == 0
    assert alone[1] == pytest.approx(1)


def test_similarity_with_case() -> None:
    found = similarity(["Goal", "goal", "x"], np.ones(3, np.bool_), lowercase=False)
    assert found.tolist() == [0, 0, 0]


def test_similarity_equals_the_cosines_of_tf_idf(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    random = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(60)])
    texts = [" ".join(random.choice(words, random.integers(1, 12))) for _ in range(300)]
    is_training = random.random(300) < 0.7
    vectors = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+").fit_transform(texts)
    cosines = (vectors @ vectors.T).toarray()
    np.fill_diagonal(cosines, 0)
    monkeypatch.setattr(nearest, "CHUNK", 7)
    np.testing.assert_allclose(similarity(texts, is_training), cosines[:, is_training].max(axis=1), atol=1e-5)
    monkeypatch.setattr(nearest, "MAX_REFERENCES", 10)
    first = np.flatnonzero(is_training)[:10]
    np.testing.assert_allclose(similarity(texts, is_training), cosines[:, first].max(axis=1), atol=1e-5)


def test_similarity_of_long_texts_compares_the_words_with_the_largest_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "MAX_WORDS", 1)
    texts = ["common rare one", "common rare two", "common", "common"]
    assert similarity(texts, np.ones(4, np.bool_))[:2].tolist() == [0, 0]  # `one` and `two` are rarer than `rare`
    assert similarity(texts, np.ones(4, np.bool_))[2:].tolist() == pytest.approx([1, 1])


def test_similarity_without_training_rows_is_zero() -> None:
    assert similarity(["a"], np.zeros(1, np.bool_)).tolist() == [0]


def test_similarity_of_texts_without_words_is_zero() -> None:
    assert similarity(["", " "], np.ones(2, np.bool_)).tolist() == [0, 0]

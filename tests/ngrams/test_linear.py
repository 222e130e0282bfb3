"""Linear models on n-grams: what they learn, what is chosen, degenerate rows."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from txclf.metrics import calibration
from txclf.ngrams import linear
from txclf.ngrams.features import Analyzer, count
from txclf.ngrams.linear import choose, fit

TOPICS = {0: "goal match team score", 1: "bank market share price", 2: "cell gene protein virus"}
WORDS = Analyzer(words=1)


def make(rows: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Return texts with two words of their topic, and the topics."""
    draw = random.Random(seed)
    labels = [draw.randrange(3) for _ in range(rows)]
    words = ["the", "a", "of", "in", "on", "at", "to", "and", "it", "was"]
    texts = [" ".join(draw.choices(words, k=8) + draw.choices(TOPICS[label].split(), k=2)) for label in labels]
    return texts, np.array(labels)


def test_choose_learns_topics_and_calibrates_on_the_validation_rows() -> None:
    texts, labels = make(300)
    labels[::10] = (labels[::10] + 1) % 3  # so that certainty has a price
    valid_texts, valid_labels = make(200, seed=1)
    valid_labels[::10] = (valid_labels[::10] + 1) % 3
    choice = choose(texts, labels, valid_texts, valid_labels, num_labels=3)
    assert {candidate.weighting for candidate in choice.candidates} == {"tfidf", "naive bayes"}
    assert len(choice.candidates) == sum(map(len, linear.COSTS.values()))
    logits = choice.model.logits(valid_texts)
    best = max(candidate.score for candidate in choice.candidates)
    assert float((logits.argmax(axis=1) == valid_labels).mean()) == best > 0.85
    assert choice.model.temperature == pytest.approx(calibration.temperature(logits, valid_labels))


def test_choose_without_validation_rows_tries_one_setting() -> None:
    texts, labels = make(300)
    choice = choose(texts, labels, [], labels[:0], num_labels=3)
    assert len(choice.candidates) == 1
    scored, truth = make(200, seed=1)
    assert (choice.model.logits(scored).argmax(axis=1) == truth).mean() > 0.95


def test_choose_label_sets() -> None:
    texts, topics = make(400)
    targets = np.stack([topics == 0, topics != 1, np.zeros(400, np.bool_)], axis=1)
    choice = choose(texts[:300], targets[:300], texts[300:], targets[300:], num_labels=3)
    found = choice.model.logits(texts[300:]) > 0
    assert (found == targets[300:]).mean() > 0.95
    assert not found[:, 2].any()


@pytest.mark.parametrize("weighting", ["tfidf", "naive bayes"])
def test_fit_weights_of_two_classes_mirror_each_other(weighting: Any) -> None:
    texts = ["not good but bad", "bad but not good", "good but not bad", "not bad but good"] * 10
    labels = np.array([0, 0, 1, 1] * 10)
    pairs = Analyzer(words=2)
    model = fit(count(texts, pairs), labels, num_labels=2, analyzer=pairs, weighting=weighting, cost=1.0)
    assert model.logits(["it was not good", "it was not bad"]).argmax(axis=1).tolist() == [0, 1]
    assert np.array_equal(model.weights[:, 0], -model.weights[:, 1])
    assert np.array_equal(model.weights, model.weights.astype(np.float16))


def test_features_have_length_one_in_words_and_in_characters() -> None:
    both = Analyzer(words=2, characters=(2, 3))
    counts = count([*make(20)[0], "", "!"], both)
    matrix = linear.features(counts, "tfidf", np.full(len(counts.keys), 2.0, np.float32))
    norms = np.sqrt(matrix.multiply(matrix).sum(axis=1)).A1
    assert norms[:20] == pytest.approx(np.sqrt(2.0), rel=1e-5)
    assert norms[20] == 0.0


@pytest.mark.parametrize(
    ("texts", "labels"),
    [(["a b", "c d", "e"], [1, 1, 1]), (["", " ", "\t"], [0, 1, 1]), ([], []), (["a"], [2])],
)
def test_choose_degenerate_rows_predicts_the_most_frequent_class(texts: list[str], labels: list[int]) -> None:
    choice = choose(texts, np.array(labels, np.int64), [], np.empty(0, np.int64), num_labels=3)
    logits = choice.model.logits(["a b", "unknown", ""])
    assert np.isfinite(logits).all()
    if labels:
        assert logits[1:].argmax(axis=1).tolist() == [max(set(labels), key=labels.count)] * 2


def test_fit_keeps_the_ngrams_of_most_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["often rare1", "often rare2", "often twice", "twice"] * 2
    monkeypatch.setattr(linear, "MIN_FEATURES", 2)
    monkeypatch.setattr(linear, "MAX_WEIGHTS", 4)
    kept = linear._kept(count(texts, WORDS), 2)
    assert np.array_equal(kept.keys, count(["often", "twice"], WORDS).keys)
    assert kept.matrix.sum() == 10


def test_choose_many_texts_uses_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, labels = make(300)
    monkeypatch.setattr(linear, "MAX_SHORT_CHARS", sum(map(len, texts[:100])))
    some = choose(texts, labels, [], labels[:0], num_labels=3)
    assert some.train_rows == 100
    assert np.array_equal(
        some.model.weights, choose(texts[:100], labels[:100], [], labels[:0], num_labels=3).model.weights
    )

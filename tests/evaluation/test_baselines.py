"""Baselines: they learn labels that follow from words, and never fail for lack of data."""

from __future__ import annotations

import random

import numpy as np
import pytest

from txclf.evaluation import baselines

TOPICS = {0: "goal match team score", 1: "bank market share price", 2: "cell gene protein virus"}


def make(rows: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Return texts with two words of their topic, and the topics."""
    draw = random.Random(seed)
    labels = [draw.randrange(3) for _ in range(rows)]
    words = ["the", "a", "of", "in", "on", "at", "to", "and", "it", "was"]
    texts = [" ".join(draw.choices(words, k=8) + draw.choices(TOPICS[label].split(), k=2)) for label in labels]
    return texts, np.array(labels)


@pytest.mark.parametrize(("labels", "expected"), [([2, 2, 1], 2), ([0], 0), ([3, 1, 1, 3], 1)])
def test_majority_any_labels_predicts_the_most_frequent(labels: list[int], expected: int) -> None:
    assert baselines.majority(np.array(labels), 4).tolist() == [expected] * 4
    assert baselines.majority(np.array(labels), 0).tolist() == []


@pytest.mark.parametrize("rows", [60, 1500])
def test_logistic_regression_topic_words_are_learned(rows: int) -> None:
    texts, labels = make(rows)
    scored, truth = make(200, seed=1)
    found = baselines.logistic_regression(texts, labels, scored)
    assert (found.predictions == truth).mean() > 0.95
    assert found.predictions.dtype == np.int64
    assert found.train_rows == rows
    assert found.seconds > 0


def test_logistic_regression_word_pairs_are_features() -> None:
    texts = ["not good but bad", "bad but not good", "good but not bad", "not bad but good"] * 10
    found = baselines.logistic_regression(texts, np.array([0, 0, 1, 1] * 10), ["it was not good", "it was not bad"])
    assert found.predictions.tolist() == [0, 1]


def test_logistic_regression_single_letters_keep_their_case_if_requested() -> None:
    texts, labels = ["x = 1", "X = 1"] * 20, np.array([0, 1] * 20)
    kept = baselines.logistic_regression(texts, labels, ["x", "X"], lowercase=False)
    assert kept.predictions.tolist() == [0, 1]
    lost = baselines.logistic_regression(texts, labels, ["x", "X"])
    assert len(set(lost.predictions.tolist())) == 1


@pytest.mark.parametrize(
    ("texts", "labels"),
    [
        (["a b", "c d", "e"], [4, 4, 4]),
        (["!!", "??", "…"], [1, 2, 2]),
        ([f"word{number}" for number in range(1200)], [5] * 700 + [6] * 500),  # no word occurs twice
    ],
)
def test_logistic_regression_nothing_to_learn_predicts_the_majority(texts: list[str], labels: list[int]) -> None:
    found = baselines.logistic_regression(texts, np.array(labels), ["a", "b", ""])
    assert found.predictions.tolist() == [max(set(labels), key=labels.count)] * 3
    assert found.train_rows == len(texts)


def test_logistic_regression_no_texts_returns_no_predictions() -> None:
    texts, labels = make(30)
    found = baselines.logistic_regression(texts, labels, [])
    assert found.predictions.tolist() == []
    assert found.predictions.dtype == np.int64


def test_logistic_regression_more_than_max_rows_uses_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "MAX_ROWS", 40)
    texts, labels = make(60)
    found = baselines.logistic_regression(texts + ["nonsense"] * 60, np.concatenate([labels, [0] * 60]), texts)
    assert found.train_rows == 40
    assert (found.predictions == labels).mean() > 0.9


def test_one_vs_rest_topic_words_are_learned() -> None:
    texts, topics = make(300)
    scored, truth = make(100, seed=1)
    found = baselines.one_vs_rest(texts, topics[:, None] == np.arange(3), scored)
    assert found.logits.shape == (100, 3)
    assert (found.logits.argmax(axis=1) == truth).mean() > 0.95
    assert found.train_rows == 300
    assert found.seconds > 0


@pytest.mark.parametrize("texts", [["a b", "c d", "e f", "g h"], ["!!", "??", "…", "--"]])
def test_one_vs_rest_constant_labels_get_the_logit_of_their_share(texts: list[str]) -> None:
    targets = np.array([[True, False], [True, False], [True, False], [True, False]])
    found = baselines.one_vs_rest(texts, targets, ["a b", ""])
    assert found.logits[:, 0] == pytest.approx([np.log((1 - 1e-6) / 1e-6)] * 2, rel=0.01)
    assert found.logits[:, 1] == pytest.approx([np.log(1e-6 / (1 - 1e-6))] * 2, rel=0.01)


def test_one_vs_rest_no_texts_returns_no_logits() -> None:
    texts, topics = make(30)
    assert baselines.one_vs_rest(texts, topics[:, None] == np.arange(3), []).logits.shape == (0, 3)


def test_one_vs_rest_more_than_max_rows_uses_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "MAX_ROWS", 40)
    texts, topics = make(60)
    assert baselines.one_vs_rest(texts, topics[:, None] == np.arange(3), texts).train_rows == 40

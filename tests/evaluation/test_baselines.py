"""The baselines: right where the words tell the label, and never in the way."""

from __future__ import annotations

import random

import numpy as np
import pytest

from txclf.evaluation import baselines

TOPICS = {0: "goal match team score", 1: "bank market share price", 2: "cell gene protein virus"}


def make(rows: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    draw = random.Random(seed)
    labels = [draw.randrange(3) for _ in range(rows)]
    words = ["the", "a", "of", "in", "on", "at", "to", "and", "it", "was"]
    texts = [" ".join(draw.choices(words, k=8) + draw.choices(TOPICS[label].split(), k=2)) for label in labels]
    return texts, np.array(labels)


@pytest.mark.parametrize(("labels", "expected"), [([2, 2, 1], 2), ([0], 0), ([3, 1, 1, 3], 1)])
def test_the_majority(labels: list[int], expected: int) -> None:
    assert baselines.majority(np.array(labels), 4).tolist() == [expected] * 4
    assert baselines.majority(np.array(labels), 0).tolist() == []


@pytest.mark.parametrize("rows", [60, 1500])
def test_words_that_tell_the_label_are_learned(rows: int) -> None:
    texts, labels = make(rows)
    scored, truth = make(200, seed=1)
    found = baselines.logistic_regression(texts, labels, scored)
    assert (found.predictions == truth).mean() > 0.95
    assert found.predictions.dtype == np.int64
    assert found.train_rows == rows
    assert found.seconds > 0


def test_pairs_of_words_count() -> None:
    texts = ["not good but bad", "bad but not good", "good but not bad", "not bad but good"] * 10
    found = baselines.logistic_regression(texts, np.array([0, 0, 1, 1] * 10), ["it was not good", "it was not bad"])
    assert found.predictions.tolist() == [0, 1]


def test_letters_are_words_too_and_case_counts_when_it_is_asked() -> None:
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
        ([f"word{number}" for number in range(1200)], [5] * 700 + [6] * 500),  # no word comes twice
    ],
)
def test_where_nothing_can_be_learned_it_is_the_majority(texts: list[str], labels: list[int]) -> None:
    found = baselines.logistic_regression(texts, np.array(labels), ["a", "b", ""])
    assert found.predictions.tolist() == [max(set(labels), key=labels.count)] * 3
    assert found.train_rows == len(texts)


def test_nothing_to_score() -> None:
    texts, labels = make(30)
    found = baselines.logistic_regression(texts, labels, [])
    assert found.predictions.tolist() == []
    assert found.predictions.dtype == np.int64


def test_no_more_rows_than_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "MAX_ROWS", 40)
    texts, labels = make(60)
    found = baselines.logistic_regression(texts + ["nonsense"] * 60, np.concatenate([labels, [0] * 60]), texts)
    assert found.train_rows == 40
    assert (found.predictions == labels).mean() > 0.9

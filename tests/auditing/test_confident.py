"""Confident learning: thresholds, the number of suspects, and which rows they are."""

from __future__ import annotations

import numpy as np
import pytest

from txclf.auditing import confident
from txclf.ngrams.linear import Floats


def random_probabilities(rows: int, classes: int, seed: int) -> tuple[Floats, np.ndarray, np.ndarray]:
    """Return probabilities of models that are mostly right, labels of which a tenth are wrong, and a mask of these."""
    draw = np.random.default_rng(seed)
    true = draw.integers(classes, size=rows)
    logits = 5 * np.eye(classes)[true] + draw.normal(size=(rows, classes))
    labels = true.copy()
    labels[::10] = (true[::10] + draw.integers(1, classes, len(true[::10]))) % classes
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities.astype(np.float32), labels, labels != true


def test_thresholds_are_the_mean_probability_of_the_own_label() -> None:
    probabilities = np.array([[0.9, 0.1, 0.0], [0.5, 0.5, 0.0], [0.2, 0.8, 0.0]], np.float32)
    found = confident.thresholds(probabilities, np.array([0, 0, 1]))
    assert found.tolist() == pytest.approx([0.7, 0.8, np.inf])


def test_suspects_example_by_hand() -> None:
    # Thresholds: 0.55 for the first class, 0.7 for the second. Rows 2 and 3 prefer the other class; only row 2 reaches
    # its threshold, so one label is wrong: the one with the lowest probability.
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.15, 0.85], [0.45, 0.55], [0.3, 0.7]], np.float32)
    labels = np.array([0, 0, 0, 0, 1])
    assert confident.suspects(probabilities, labels).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("classes", [2, 5, 40])
def test_suspects_find_wrong_labels(classes: int) -> None:
    probabilities, labels, wrong = random_probabilities(4000, classes, seed=classes)
    found = confident.suspects(probabilities, labels)
    assert (found & wrong).sum() > 0.65 * wrong.sum()
    assert (found & wrong).sum() > 0.9 * found.sum()
    assert not (found & (probabilities.argmax(axis=1) == labels)).any()
    own = probabilities[np.arange(len(labels)), labels]
    doubtful = probabilities.argmax(axis=1) != labels
    assert own[found].max() <= own[doubtful & ~found].min()


def test_suspects_of_certain_and_of_constant_models_are_none() -> None:
    labels = np.array([0, 1, 2] * 5)
    assert not confident.suspects(np.eye(3, dtype=np.float32)[labels], labels).any()
    constant = np.full((15, 3), 1 / 3, np.float32)
    assert confident.suspects(constant, labels).sum() <= (constant.argmax(axis=1) != labels).sum()
    assert confident.suspects(np.zeros((0, 3), np.float32), np.zeros(0, np.int64)).shape == (0,)


def test_suspect_labels_are_those_of_each_label_by_itself() -> None:
    draw = np.random.default_rng(0)
    true = draw.random((2000, 3)) < 0.3
    probabilities = (1 / (1 + np.exp(-(8 * true - 4 + draw.normal(size=true.shape))))).astype(np.float32)
    targets = true.copy()
    targets[::20, 1] = ~true[::20, 1]
    found = confident.suspect_labels(probabilities, targets)
    assert found.shape == targets.shape
    assert found[::20, 1].mean() > 0.9
    assert found[:, [0, 2]].mean() < 0.02

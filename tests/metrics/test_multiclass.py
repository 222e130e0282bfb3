"""Scores of single-label predictions."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    matthews_corrcoef,
    precision_score,
    recall_score,
    roc_auc_score,
)

from txclf.metrics import multiclass
from txclf.metrics.multiclass import Confusion, scores, short_scores

NAMES = ["a", "b", "c", "d"]


def make(rows: int = 400) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    labels = draw.choice(3, rows, p=[0.6, 0.3, 0.1]).astype(np.int64)  # class 3 never occurs
    logits = draw.normal(size=(rows, 4)) + 2 * np.eye(4)[labels] - [0, 0, 0, 9]
    exponents = np.exp(logits)
    return (exponents / exponents.sum(axis=1, keepdims=True)).astype(np.float32), labels


def test_scores_equal_those_of_sklearn() -> None:
    probabilities, labels = make()
    predicted = probabilities.argmax(axis=1)
    found = scores(probabilities, labels, NAMES)
    assert found["rows"] == 400
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert found["f1_macro"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert found["precision_macro"] == pytest.approx(precision_score(labels, predicted, average="macro"))
    assert found["recall_macro"] == pytest.approx(recall_score(labels, predicted, average="macro"))
    assert found["mcc"] == pytest.approx(matthews_corrcoef(labels, predicted))
    each = [roc_auc_score(labels == number, probabilities[:, number]) for number in range(3)]
    assert found["auroc_macro"] == pytest.approx(np.mean(each), abs=1e-5)
    assert np.array(found["confusion_cells"])[:, 2].sum() == 400
    counts = confusion_matrix(labels, predicted, labels=range(4))
    np.fill_diagonal(counts, 0)
    assert [pair["rows"] for pair in found["confusions"]] == sorted(counts[counts > 0].tolist(), reverse=True)
    worst = found["confusions"][0]
    assert counts[NAMES.index(worst["label"]), NAMES.index(worst["predicted"])] == worst["rows"]


def test_scores_minority_is_the_rarest_class_with_rows() -> None:
    probabilities, labels = make()
    found = scores(probabilities, labels, NAMES)
    assert found["minority"] == "c"
    assert found["f1_minority"] == found["per_class"]["c"]["f1"]
    equal = np.arange(6) % 3
    right, wrong = short_scores(equal, equal, 3), short_scores((equal + (equal > 0)) % 3, equal, 3)
    assert right["f1_minority"] == 1.0
    assert wrong["f1_minority"] == pytest.approx(2 / 3)  # of the same class, not of the worst
    assert found["per_class"]["d"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}


def test_scores_single_class_has_no_auroc_and_zero_correlation() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2]], np.float32)
    found = scores(probabilities, np.zeros(2, np.int64), ["a", "b"])
    assert found["auroc_macro"] is None
    assert found["mcc"] == 0.0
    assert found["accuracy"] == 1.0


def test_confusion_equals_that_of_sklearn() -> None:
    draw = np.random.default_rng(1)
    predicted, labels = draw.integers(0, 30, 500), draw.integers(0, 30, 500) // 2
    found = Confusion.of(predicted, labels, 31)
    expected = confusion_matrix(labels, predicted, labels=range(31))
    assert found.listed() == [[i, j, expected[i, j]] for i, j in zip(*np.nonzero(expected), strict=True)]
    assert found.hits.tolist() == np.diag(expected).tolist()


def test_scores_many_classes_list_the_most_frequent_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(2)
    labels = draw.integers(0, 1500, 3000)
    predicted = np.where(draw.random(3000) < 0.5, labels, draw.integers(0, 5, 3000))
    found = Confusion.of(predicted, labels, 1500).listed()
    assert sum(rows for _, _, rows in found) == 3000
    expected = confusion_matrix(labels, predicted, labels=range(1500))
    assert all(expected[i, j] == rows > 0 for i, j, rows in found)
    monkeypatch.setattr(multiclass, "MAX_CELLS", 100)
    top = Confusion.of(predicted, labels, 1500).listed()
    assert sorted(rows for _, _, rows in top) == sorted(rows for _, _, rows in found)[-100:]
    assert top == sorted(top)


def test_scores_ten_thousand_classes_need_no_square_of_memory() -> None:
    labels = np.arange(10_000)
    tracemalloc.start()
    found = Confusion.of(labels[::-1].copy(), labels, 10_000)
    assert len(found.listed()) == 10_000
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_short_scores_equal_scores() -> None:
    probabilities, labels = make()
    found = scores(probabilities, labels, NAMES)
    short = short_scores(probabilities.argmax(axis=1), labels, 4)
    assert short == {key: found[key] for key in ("accuracy", "f1_macro", "f1_minority")}

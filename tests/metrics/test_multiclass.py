"""Single-label scores, compared with scikit-learn's for many sets of classes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn import metrics

from txclf.metrics.multiclass import scores, short_scores

Floats = np.ndarray
CASES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "all classes": lambda draw, classes: draw.integers(0, classes, 200),
    "few rows": lambda draw, classes: draw.integers(0, classes, 3),
    "one row": lambda draw, classes: draw.integers(0, classes, 1),
    "rare class": lambda draw, classes: (draw.random(200) < 0.02).astype(np.int64),
    "last class absent": lambda draw, classes: draw.integers(0, max(1, classes - 1), 100),
    "first class absent": lambda draw, classes: draw.integers(1, classes, 100),
    "one class": lambda draw, classes: np.full(50, classes - 1),
}


def make(case: str, classes: int, mode: str, seed: int = 0) -> tuple[Floats, np.ndarray]:
    """Return probabilities (rows, classes) and labels (rows,)."""
    draw = np.random.default_rng(seed)
    labels = CASES[case](draw, classes).astype(np.int64)
    logits = draw.normal(size=(len(labels), classes))
    if mode == "right":
        logits[np.arange(len(labels)), labels] += 30
    elif mode == "wrong":
        logits[np.arange(len(labels)), (labels + 1) % classes] += 30
    elif mode == "constant":
        logits[:, 0] += 30
    elif mode == "skilled":
        logits[np.arange(len(labels)), labels] += 1
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32), labels


def calibration_error(probabilities: Floats, labels: np.ndarray) -> float:
    """Compute equation 3 of Guo et al. (arXiv:1706.04599) with 15 bins."""
    confidence, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * 15).astype(int), 14)
    return float(
        sum(abs(hit[bins == i].mean() - confidence[bins == i].mean()) * (bins == i).mean() for i in np.unique(bins))
    )


@pytest.mark.parametrize("mode", ["random", "skilled", "right", "wrong", "constant"])
@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("case", CASES)
def test_scores_any_classes_equal_scikit_learn(case: str, classes: int, mode: str) -> None:
    probabilities, labels = make(case, classes, mode)
    names = [f"class {number}" for number in range(classes)]
    found = scores(probabilities, labels, names)
    predicted = probabilities.argmax(axis=1)
    every = np.arange(classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warns about classes without rows and about constant labels
        expected = {
            "accuracy": metrics.accuracy_score(labels, predicted),
            "f1_macro": metrics.f1_score(labels, predicted, average="macro", zero_division=0),
            "precision_macro": metrics.precision_score(labels, predicted, average="macro", zero_division=0),
            "recall_macro": metrics.recall_score(labels, predicted, average="macro", zero_division=0),
            "mcc": metrics.matthews_corrcoef(labels, predicted),
            "loss": metrics.log_loss(labels, probabilities.clip(1e-12).astype(np.float64), labels=every),
            "calibration_error": calibration_error(probabilities, labels),
        }
        by_class = metrics.precision_recall_fscore_support(labels, predicted, labels=every, zero_division=0)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-4)
    assert found["confusion"] == metrics.confusion_matrix(labels, predicted, labels=every).tolist()
    assert list(found["per_class"]) == names
    for name, *values in zip(names, *by_class, strict=True):
        assert list(found["per_class"][name].values()) == pytest.approx(values)
    scorable = [number for number in every if 0 < (labels == number).sum() < len(labels)]
    areas = [metrics.roc_auc_score(labels == number, probabilities[:, number]) for number in scorable]
    assert found["auroc_macro"] == (pytest.approx(np.mean(areas), abs=1e-5) if areas else None)
    assert found["rows"] == len(labels)
    short = short_scores(predicted, labels, classes)
    rows = {number: int((labels == number).sum()) for number in every if (labels == number).any()}
    rarest = min(float(by_class[2][number]) for number in rows if rows[number] == min(rows.values()))
    assert found["f1_minority"] == pytest.approx(rarest)
    assert found["per_class"][found["minority"]]["f1"] == pytest.approx(rarest)
    assert found["per_class"][found["minority"]]["support"] == min(rows.values())
    assert short == {name: pytest.approx(found[name]) for name in ("accuracy", "f1_macro", "f1_minority")}


@pytest.mark.parametrize(
    ("case", "mode"), [("all classes", "skilled"), ("one class", "constant"), ("one row", "wrong")]
)
def test_scores_any_case_are_valid_json(case: str, mode: str) -> None:
    found = scores(*make(case, 3, mode), ["a", "b", "c"])
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_scores_zero_probability_of_the_true_class_gives_a_finite_loss() -> None:
    probabilities = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    found = scores(probabilities, np.array([1, 1]), ["a", "b"])
    assert found["loss"] == pytest.approx(-np.log(1e-12) / 2)


def test_scores_constant_predictions_have_zero_correlation() -> None:
    probabilities = np.tile(np.array([[0.9, 0.1]], np.float32), (100, 1))
    found: dict[str, Any] = scores(probabilities, np.array([0] * 90 + [1] * 10), ["a", "b"])
    assert (found["mcc"], found["accuracy"], found["auroc_macro"]) == (0.0, 0.9, 0.5)
    assert found["calibration_error"] == pytest.approx(0.0, abs=1e-6)

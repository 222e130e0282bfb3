"""Scores of multilabel predictions, compared with scikit-learn."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from sklearn import metrics

from txclf.metrics.multilabel import average_precision, scores, short_scores


def make(rows: int, classes: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return probabilities with ties, targets and thresholds."""
    draw = np.random.default_rng(seed)
    targets = draw.random((rows, classes)) < share
    probabilities = np.clip(draw.random((rows, classes)) * 0.7 + 0.3 * targets, 0, 1).round(2).astype(np.float32)
    return probabilities, targets, draw.random(classes).astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (4, 3), (200, 6), (100, 1)])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_scores_equal_those_of_sklearn(rows: int, classes: int, share: float, seed: int) -> None:
    probabilities, targets, thresholds = make(rows, classes, share, seed)
    names = [f"label {number}" for number in range(classes)]
    found = scores(probabilities, targets, thresholds, names)
    given = probabilities >= thresholds
    kept = targets.any(axis=0) | given.any(axis=0)
    there = np.flatnonzero(targets.any(axis=0))
    nan = {"average": "macro", "zero_division": 0}
    truth, guess = targets[:, kept].astype(int), given[:, kept].astype(int)
    by_label = [
        metrics.precision_recall_fscore_support(targets[:, i], given[:, i], average="binary", zero_division=0)
        for i in range(classes)
    ]
    expected = {
        "subset_accuracy": (targets == given).all(axis=1).mean(),
        "hamming_loss": (targets != given).mean(),
        "f1_micro": metrics.f1_score(targets.ravel(), given.ravel(), zero_division=0),
        "loss": metrics.log_loss(targets.ravel(), probabilities.ravel().clip(1e-12).astype(float), labels=[0, 1]),
        "labels_per_row": targets.sum() / rows,
        "labels_given_per_row": given.sum() / rows,
    }
    if classes > 1 and kept.sum() > 1:
        expected["f1_macro"] = metrics.f1_score(truth, guess, **nan)
        expected["precision_macro"] = metrics.precision_score(truth, guess, **nan)
        expected["recall_macro"] = metrics.recall_score(truth, guess, **nan)
    if classes > 1:
        expected["lrap"] = metrics.label_ranking_average_precision_score(targets, probabilities)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    areas = [metrics.average_precision_score(targets[:, i], probabilities[:, i]) for i in there]
    assert found["map"] == (pytest.approx(np.mean(areas)) if len(there) else None)
    for number, (name, (precision, recall, f1, _)) in enumerate(zip(names, by_label, strict=True)):
        one = found["per_class"][name]
        assert (one["precision"], one["recall"], one["f1"]) == pytest.approx((precision, recall, f1))
        assert one["support"] == targets[:, number].sum()
        assert one["threshold"] == pytest.approx(thresholds[number])
    short = short_scores(given, targets)
    assert short == {name: found[name] for name in ("f1_macro", "f1_micro", "subset_accuracy")}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_average_precision_equal_scores_count_together() -> None:
    scores = np.array([0.9, 0.5, 0.5, 0.5, 0.1], np.float32)
    targets = np.array([True, False, True, False, False])
    assert average_precision(scores, targets) == pytest.approx((1 + 2 / 4) / 2)
    assert average_precision(scores[::-1], targets[::-1]) == pytest.approx((1 + 2 / 4) / 2)


def test_scores_zero_probability_of_a_true_label_has_finite_loss() -> None:
    found = scores(np.zeros((1, 1), np.float32), np.ones((1, 1), bool), np.full(1, 0.5, np.float32), ["a"])
    assert found["loss"] == pytest.approx(-math.log(1e-12))

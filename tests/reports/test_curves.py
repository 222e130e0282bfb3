"""Curves and bins, compared with scikit-learn and with counts."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from sklearn import metrics

from txclf.reports import curves
from txclf.reports.content import ALL_CLASSES


@pytest.mark.parametrize("rows", [2, 30, 5000])
def test_class_curves_any_scores_have_the_areas_of_scikit_learn(rows: int) -> None:
    draw = np.random.default_rng(rows)
    truth = draw.random(rows) < 0.3
    truth[:2] = [True, False]
    scores = np.round(truth * 0.3 + draw.random(rows), 2).astype(np.float32)
    found = asdict(curves.class_curves(scores, truth, ALL_CLASSES))
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(truth, scores))
    assert found["ap"] == pytest.approx(metrics.average_precision_score(truth, scores))
    assert len(found["fpr"]) <= curves.CURVE_POINTS + 2
    assert (found["fpr"][0], found["tpr"][0], found["fpr"][-1], found["tpr"][-1]) == (0, 0, 1, 1)
    assert np.trapezoid(found["tpr"], found["fpr"]) == pytest.approx(found["auc"], abs=0.02)


def test_reliability_bins_hold_every_row_once() -> None:
    draw = np.random.default_rng(0)
    confidence = np.append(draw.random(200), [0.0, 1.0]).astype(np.float32)
    right = draw.random(202) < confidence
    bins = curves.reliability(confidence, right)
    assert sum(count for _, _, count in bins) == 202
    assert sum(accuracy * count for _, accuracy, count in bins) == pytest.approx(right.sum())
    assert sum(mean * count for mean, _, count in bins) == pytest.approx(confidence.sum(), rel=1e-5)
    assert [mean for mean, _, _ in bins] == sorted(mean for mean, _, _ in bins)


def test_curves_classes_without_a_contrast_have_none() -> None:
    targets = np.array([[True, True, False], [False, True, False], [True, True, False]])
    found = curves.by_class(np.array([[0.9, 0.1, 0.2]] * 3, np.float32), targets)
    assert [curve.class_id for curve in found] == [ALL_CLASSES, 0]


@pytest.mark.parametrize("has_label", [True, False])
def test_curves_targets_that_are_all_equal_have_none(has_label: bool) -> None:
    assert curves.by_class(np.full((3, 2), 0.5, np.float32), np.full((3, 2), has_label)) == []


def test_curves_first_rows_without_a_contrast_have_those_of_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "MICRO_CELLS", 4)
    targets = np.array([[False, False], [False, False], [True, False]])
    found = curves.by_class(np.full((3, 2), 0.5, np.float32), targets)
    assert [curve.class_id for curve in found] == [0]


def test_class_curves_thresholds_give_the_precision_and_recall_next_to_them() -> None:
    draw = np.random.default_rng(1)
    truth = draw.random(300) < 0.3
    scores = np.round((truth * 0.3 + draw.random(300)) / 1.3, 2).astype(np.float32)
    found = curves.class_curves(scores, truth, 0)
    for threshold, precision, recall in list(zip(found.threshold, found.precision, found.recall, strict=True))[:-1]:
        positive = scores >= np.float32(threshold)
        assert precision == pytest.approx(truth[positive].mean(), abs=1e-3)
        assert recall == pytest.approx((truth & positive).sum() / truth.sum(), abs=1e-3)
    assert (found.recall[-1], found.precision[-1], found.threshold[-1]) == (0, 1, 1)


def test_coverage_points_are_the_accuracies_of_the_most_confident_rows() -> None:
    confidence = np.array([0.9, 0.5, 0.9, 0.7], np.float32)
    right = np.array([True, False, False, True])
    assert curves.coverage(confidence, right) == [[0.5, 0.5, 0.9], [0.75, 0.6667, 0.7], [1.0, 0.5, 0.5]]


def test_coverage_many_rows_are_thinned_and_end_at_all_rows() -> None:
    draw = np.random.default_rng(0)
    confidence, right = draw.random(5000).astype(np.float32), draw.random(5000) < 0.8
    found = curves.coverage(confidence, right)
    assert len(found) <= curves.CURVE_POINTS
    assert found[-1][:2] == [1, pytest.approx(right.mean(), abs=1e-4)]

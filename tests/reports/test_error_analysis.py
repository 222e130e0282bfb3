"""Scores, curves and mistakes of a split, compared with the bundle and with scikit-learn."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics

from tests.helpers.reports import ReportPage
from txclf import Classifier
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.data import shards
from txclf.reports import error_analysis, report
from txclf.reports.content import ALL_CLASSES
from txclf.reports.error_analysis import Budget, ScoredRows, TextRow


def test_mistakes_any_row_equals_the_prediction_of_the_bundle(run: RunConfig) -> None:
    (split,) = ReportPage(report.report([run.run_folder])).content["splits"]
    classifier = Classifier.load(storage.join(run.run_folder, "model"))
    lines = Path(str(run.data.train[0] if run.data.train else "")).read_text()
    for mistake in split["mistakes"][:5]:
        (prediction,) = classifier([mistake["text"]])
        assert prediction.label == mistake["predicted"] == mistake["top"][0][0]
        assert prediction.probabilities[mistake["label"]] == pytest.approx(mistake["label_probability"], abs=1e-5)
        assert mistake["file"].endswith("<b>train.csv")
        assert str(mistake["text"].split()[-1]) in lines


def test_score_budget_bounds_the_rows(run: RunConfig) -> None:
    prepared = storage.read_json(storage.join(run.run_folder, "summary.json"))["prepared"]
    manifest = shards.load_manifest(prepared)
    classifier = Classifier.load(storage.join(run.run_folder, "model"))
    few = error_analysis.score(classifier, prepared, manifest, "train", Budget(7, 60.0, 50))
    every = error_analysis.score(classifier, prepared, manifest, "train", Budget(10**6, 60.0, 50))
    assert (len(few.labels), few.total_rows) == (7, manifest.splits["train"].rows)
    assert len(every.labels) == every.total_rows == len(every.sources)
    np.testing.assert_allclose(few.logits, every.logits[:7], atol=1e-5)
    found = error_analysis.baseline_scores(few, prepared, manifest, lowercase=True, budget=Budget(7, 60.0, 50))
    assert found["baseline"]["train_rows"] == 50


@pytest.mark.parametrize("rows", [2, 30, 5000])
def test_class_curves_any_scores_have_the_areas_of_scikit_learn(rows: int) -> None:
    draw = np.random.default_rng(rows)
    truth = draw.random(rows) < 0.3
    truth[:2] = [True, False]
    scores = np.round(truth * 0.3 + draw.random(rows), 2).astype(np.float32)
    found = asdict(error_analysis.class_curves(scores, truth, ALL_CLASSES))
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(truth, scores))
    assert found["ap"] == pytest.approx(metrics.average_precision_score(truth, scores))
    assert len(found["fpr"]) <= error_analysis.CURVE_POINTS + 2
    assert (found["fpr"][0], found["tpr"][0], found["fpr"][-1], found["tpr"][-1]) == (0, 0, 1, 1)
    assert np.trapezoid(found["tpr"], found["fpr"]) == pytest.approx(found["auc"], abs=0.02)


def rows(labels: np.ndarray, text: str = "text") -> ScoredRows:
    """Return scored rows without logits, which the functions under test do not read."""
    sources = [TextRow(text, "file.csv", number) for number in range(len(labels))]
    return ScoredRows(len(labels), np.empty((len(labels), 0), np.float32), labels, sources)


def test_mistakes_right_predictions_are_left_out_and_the_worst_come_first() -> None:
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]], np.float32)
    found = error_analysis.mistakes(rows(np.array([1, 1, 1, 1])), probabilities, ["a", "b"])
    assert [mistake.row for mistake in found] == [0, 3, 1]
    assert found[0].label_probability == pytest.approx(0.1)
    assert (found[0].label, found[0].predicted, found[0].true_labels) == ("b", "a", ["b"])
    assert [label for label, _ in found[0].top] == ["a", "b"]


def test_mistakes_pair_outside_of_the_worst_is_added_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error_analysis, "MAX_MISTAKES", 2)
    probabilities = np.array([[0.9, 0.1, 0], [0.9, 0.1, 0], [0.8, 0, 0.2], [0.7, 0, 0.3]], np.float32)
    found = error_analysis.mistakes(rows(np.array([1, 1, 2, 2])), probabilities, ["a", "b", "c"])
    assert [(mistake.label, mistake.row) for mistake in found] == [("b", 0), ("b", 1), ("c", 2)]


def test_mistakes_long_text_is_truncated() -> None:
    probabilities = np.array([[0.9, 0.1]], np.float32)
    (mistake,) = error_analysis.mistakes(rows(np.array([1]), "x" * 2000), probabilities, ["a", "b"])
    assert mistake.text == "x" * error_analysis.MAX_TEXT_CHARS + " …"


def test_label_mistakes_rows_are_ranked_by_the_distance_from_the_threshold() -> None:
    targets = np.array([[True, False], [False, False], [True, True], [True, False]])
    probabilities = np.array([[0.1, 0.1], [0.1, 0.9], [0.6, 0.6], [0.4, 0.95]], np.float32)
    thresholds = np.array([0.5, 0.8], np.float32)
    found = error_analysis.label_mistakes(rows(targets), probabilities, ["a", "b"], thresholds)
    assert [mistake.row for mistake in found] == [0, 3, 1, 2]
    missing, unexpected = found[0], found[1]
    assert (missing.label, missing.predicted) == ("a", error_analysis.NO_LABEL)
    assert (unexpected.label, unexpected.predicted) == (error_analysis.NO_LABEL, "b")
    assert unexpected.label_probability == pytest.approx(0.95)
    assert [label for label, _ in unexpected.top] == ["b", "a"]
    assert [probability for _, probability in unexpected.top] == pytest.approx([0.95, 0.4])
    assert unexpected.true_labels == ["a"]


def test_reliability_bins_hold_every_row_once() -> None:
    draw = np.random.default_rng(0)
    confidence = np.append(draw.random(200), [0.0, 1.0]).astype(np.float32)
    right = draw.random(202) < confidence
    bins = error_analysis.reliability(confidence, right)
    assert sum(count for _, _, count in bins) == 202
    assert sum(accuracy * count for _, accuracy, count in bins) == pytest.approx(right.sum())
    assert sum(mean * count for mean, _, count in bins) == pytest.approx(confidence.sum(), rel=1e-5)
    assert [mean for mean, _, _ in bins] == sorted(mean for mean, _, _ in bins)


def test_curves_classes_without_a_contrast_have_none() -> None:
    targets = np.array([[True, True, False], [False, True, False], [True, True, False]])
    found = error_analysis.curves(np.array([[0.9, 0.1, 0.2]] * 3, np.float32), targets)
    assert [curve.class_id for curve in found] == [ALL_CLASSES, 0]


def test_score_time_limit_still_scores_one_chunk(run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error_analysis, "CHUNK_ROWS", 16)
    prepared = storage.read_json(storage.join(run.run_folder, "summary.json"))["prepared"]
    classifier = Classifier.load(storage.join(run.run_folder, "model"))
    manifest = shards.load_manifest(prepared)
    found = error_analysis.score(classifier, prepared, manifest, "train", Budget(1000, 0.0, 50))
    assert len(found.sources) == len(found.labels) == len(found.logits) == 16

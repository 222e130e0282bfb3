"""Scores, curves and mistakes of a split, compared with the bundle and with scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.reports import ReportPage
from txclf import Classifier
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.data import shards
from txclf.reports import error_analysis, report, word_weights
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
    assert mistake.text == "x" * word_weights.MAX_TEXT_CHARS + " …"


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


def test_score_time_limit_still_scores_one_chunk(run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error_analysis, "CHUNK_ROWS", 16)
    prepared = storage.read_json(storage.join(run.run_folder, "summary.json"))["prepared"]
    classifier = Classifier.load(storage.join(run.run_folder, "model"))
    manifest = shards.load_manifest(prepared)
    found = error_analysis.score(classifier, prepared, manifest, "train", Budget(1000, 0.0, 50))
    assert len(found.sources) == len(found.labels) == len(found.logits) == 16


def test_correct_rows_are_the_least_confident_and_the_best_of_each_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error_analysis, "MAX_CORRECT", 2)
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7], [0.8, 0.2]], np.float32)
    found = error_analysis.correct(rows(np.array([0, 0, 1, 1, 1])), probabilities, ["a", "b"])
    assert [(one.row, one.label, one.predicted) for one in found] == [
        (1, "a", "a"),
        (3, "b", "b"),
        (0, "a", "a"),
        (2, "b", "b"),
    ]


def test_label_correct_rows_have_all_labels_right_and_the_closest_come_first() -> None:
    targets = np.array([[True, False], [False, False], [True, True]])
    probabilities = np.array([[0.9, 0.1], [0.1, 0.45], [0.6, 0.4]], np.float32)
    thresholds = np.array([0.5, 0.5], np.float32)
    found = error_analysis.label_correct(rows(targets), probabilities, ["a", "b"], thresholds)
    assert [(one.row, one.label, one.predicted) for one in found] == [
        (1, error_analysis.NO_LABEL, error_analysis.NO_LABEL),
        (0, "a", "a"),
    ]


def test_explained_words_add_up_to_the_text_and_have_the_weights_of_the_bundle(run: RunConfig) -> None:
    (split,) = ReportPage(report.report([run.run_folder], budget=error_analysis.QUICK)).content["splits"]
    classifier = Classifier.load(storage.join(run.run_folder, "model"))
    weighed = [mistake for mistake in split["mistakes"] if mistake["words"]]
    assert len(weighed) == min(len(split["mistakes"]), error_analysis.QUICK.explained_rows)
    for mistake in weighed[:3]:
        assert "".join(text for text, _ in mistake["words"]) == mistake["text"]
        ((_, expected),) = classifier.explain(mistake["text"], mistake["predicted"]).columns.items()
        assert [weight for _, weight in mistake["words"]] == pytest.approx(
            [weight for _, weight in expected], abs=2e-3, nan_ok=True
        )


def test_explained_no_budget_weighs_nothing(run: RunConfig) -> None:
    (split,) = ReportPage(report.report([run.run_folder], budget=Budget(1000, 60.0, 50))).content["splits"]
    assert split["mistakes"]
    assert not any(mistake["words"] for mistake in split["mistakes"])

"""Scored splits and headline of a run."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers import pairs
from tests.helpers.files import write_csv
from tests.helpers.reports import HOSTILE, LABELS, ReportPage, copied_run
from tests.helpers.runs import TINY, go_on
from txclf import Classifier
from txclf.artifacts import run_folder
from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.data.prepare import prepare
from txclf.evaluation import evaluate
from txclf.reports import error_analysis, report, run_scores
from txclf.reports.content import ExampleSplit, LabelSplit
from txclf.reports.error_analysis import QUICK
from txclf.training.train import train


def test_scored_splits_evaluated_run_shows_the_test_split_first(run: RunConfig, tmp_path: Path) -> None:
    folder = copied_run(run, tmp_path)
    assert [split["id"] for split in ReportPage(report.report([folder])).content["splits"]] == ["valid"]
    found = evaluate.evaluate(folder)
    content = ReportPage(report.report([folder])).content
    assert [split["id"] for split in content["splits"]] == ["test", "valid"]
    assert content["headline"]["where"] == "test"
    assert content["headline"]["value"] == pytest.approx(found["accuracy"])
    assert content["headline"]["bars"][1]["value"] == found["baseline"]["accuracy"]
    test = content["splits"][0]
    assert test["per_class"] == found["per_class"]
    assert content["headline"]["difference"] == found["baseline"]["difference"]["accuracy"]
    low, high = content["headline"]["interval"]
    assert 0 < low <= found["accuracy"] <= high < 1
    expected = [one["difference"] for one in found["baseline"]["per_class"].values()]
    assert [one[1:] for one in test["differences"].values()] == expected
    assert "per_class" not in test["compared"]["baseline"]
    assert content["splits"][1]["differences"] == {}


def test_headline_sampled_test_rows_keeps_the_score_of_the_evaluation(run: RunConfig, tmp_path: Path) -> None:
    state, budget = run_folder.read_run(copied_run(run, tmp_path)), QUICK._replace(rows=20)
    found = evaluate.evaluate(state.folder)
    splits = run_scores.scored_splits(state, found, budget, [])
    assert isinstance(splits[0], LabelSplit)
    assert (splits[0].rows, splits[0].compared, splits[0].differences) == (20, {}, {})
    headline = run_scores.headline(state, [split for split in splits if isinstance(split, LabelSplit)], found)
    assert headline
    assert (headline.value, headline.rows, headline.interval) == (found["accuracy"], found["rows"], None)
    assert [bar.value for bar in headline.bars] == [
        found["accuracy"],
        found["baseline"]["accuracy"],
        found["majority"]["accuracy"],
    ]
    assert headline.difference == tuple(found["baseline"]["difference"]["accuracy"])


def test_scored_splits_scores_without_differences_show_none(run: RunConfig, tmp_path: Path) -> None:
    folder = copied_run(run, tmp_path)
    found = evaluate.evaluate(folder)
    del found["baseline"]["per_class"], found["baseline"]["difference"]  # as an earlier version wrote them
    storage.write_json(storage.join(folder, evaluate.METRICS), found)
    content = ReportPage(report.report([folder])).content
    assert content["headline"]["difference"] is None
    assert content["headline"]["beats_baseline"] is not None
    assert content["splits"][0]["differences"] == {}


def test_scored_splits_multilabel_run_shows_thresholds_and_label_mistakes(tmp_path: Path) -> None:
    table = {
        "text": [f"word{number % 3} {number} {HOSTILE[1]}" for number in range(240)],
        "label": [["a"], ["a", "b"], []] * 80,
    }
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    data = [f"data.train={tmp_path}/rows.parquet", f"data.test={tmp_path}/rows.parquet"]
    run = run_config.load(None, [*TINY, *data, "task=multilabel", f"storage={tmp_path}/runs", "name=tags"])
    train(run, prepare(run), go_on)
    content = ReportPage(report.report([run.run_folder])).content
    assert [split["id"] for split in content["splits"]] == ["valid"]
    assert content["headline"]["where"] == "validation"
    found = evaluate.evaluate(run.run_folder)
    content = ReportPage(report.report([run.run_folder])).content
    split = content["splits"][0]
    assert split["id"] == "test"
    for name, scores in found["per_class"].items():
        assert split["per_class"][name] == pytest.approx(scores)
    assert split["metrics"]["lrap"] == pytest.approx(found["lrap"])
    assert [curve["class_id"] for curve in split["curves"]] == [-1, 0, 1]
    assert sum(count for _, _, count in split["reliability"]) == 2 * split["rows"] == 480
    classifier = Classifier.load(f"{run.run_folder}/model")
    for mistake in split["mistakes"]:
        (probabilities,) = classifier.probabilities([(mistake["text"],)])
        (predicted,) = classifier.predicted_labels(probabilities[None])
        missing = mistake["label"] != error_analysis.NO_LABEL
        label = mistake["label"] if missing else mistake["predicted"]
        assert (label in predicted) != (label in mistake["true_labels"])
        assert mistake["label_probability"] == pytest.approx(probabilities[classifier.labels.index(label)], abs=1e-5)
    assert content["headline"]["value"] == found["f1_macro"]
    assert content["headline"]["bars"][1]["value"] == found["baseline"]["f1_macro"]
    assert "any number of labels per text" in Path(run.run_folder, "model/README.md").read_text()


def test_scored_splits_seq2seq_run_shows_examples(tmp_path: Path) -> None:
    lines = Path(pairs.write_pairs(tmp_path / "all.jsonl")).read_text().splitlines()[:80]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    run = pairs.pairs(tmp_path / "runs", str(tmp_path / "pairs.jsonl"), "train.epochs=1")
    train(run, prepare(run), go_on)
    content = ReportPage(report.report([run.run_folder])).content
    (split,) = content["splits"]
    assert (content["is_seq2seq"], content["is_multilabel"], split["id"]) == (True, False, "valid")
    assert content["headline"]["title"] == "exact match"
    assert split["rows"] == split["total_rows"] == len(split["examples"])
    targets = {example["text"]: example["target"] for example in split["examples"]}
    assert all(text.upper().split()[::-1] == target.split() for text, target in targets.items())
    found = evaluate.evaluate(run.run_folder)
    page = ReportPage(report.report([run.run_folder]))
    content = page.content
    assert [split["id"] for split in content["splits"]] == ["test", "valid"]
    assert (content["headline"]["title"], content["headline"]["where"]) == ("BLEU", "test")
    assert content["headline"]["value"] == pytest.approx(found["bleu"])
    shown = content["splits"][0]["examples"]
    assert len(shown) == error_analysis.MAX_EXAMPLES < found["rows"]
    assert f"Scores of all {found['rows']} rows. {error_analysis.MAX_EXAMPLES} examples are shown." in page.text
    assert f"| Test: {found['rows']} rows |" in Path(run.run_folder, "model/README.md").read_text()
    assert all(example["right"] == (example["output"].split() == example["target"].split()) for example in shown)
    assert isinstance(run_scores.scored_splits(run_folder.read_run(run.run_folder), found, QUICK, [])[0], ExampleSplit)


def test_scored_splits_run_trained_on_its_validation_rows_has_none(run: RunConfig) -> None:
    state = run_folder.read_run(run.run_folder)
    settings = run_config.with_overrides(state.run, {"train.train_on_valid": True})
    notes: list[str] = []
    assert run_scores.scored_splits(state._replace(run=settings), None, QUICK, notes) == []
    assert notes == ["The model was trained on the validation rows, so they are not scored."]


def test_scored_splits_damaged_bundle_is_a_note(run: RunConfig, tmp_path: Path) -> None:
    folder = copied_run(run, tmp_path)
    Path(folder, "model", "model.safetensors").write_bytes(b"damaged")
    notes: list[str] = []
    assert run_scores.scored_splits(run_folder.read_run(folder), None, QUICK, notes) == []
    assert len(notes) == 1
    assert notes[0].startswith("The bundle could not be scored: ")


def test_headline_monitored_metric_is_shown_next_to_the_baselines(run: RunConfig) -> None:
    state = run_folder.read_run(run.run_folder)
    splits = [split for split in run_scores.scored_splits(state, None, QUICK, []) if isinstance(split, LabelSplit)]
    for monitor, metric in (("valid_loss", "accuracy"), ("valid_f1_macro", "f1_macro")):
        changed = state._replace(run=run_config.with_overrides(state.run, {"train.monitor": monitor}))
        headline = run_scores.headline(changed, splits, None)
        assert headline
        assert headline.value == splits[0].metrics[metric]
        assert [bar.title for bar in headline.bars] == [
            "this model",
            "n-gram linear model",
            "majority class",
        ]
        assert headline.beats_baseline == (headline.value > splits[0].compared["baseline"][metric])
        assert headline.note == ""


def test_headline_without_scores_is_the_best_validation(run: RunConfig) -> None:
    state = run_folder.read_run(run.run_folder)._replace(summary=None)
    headline = run_scores.headline(state, [], None)
    assert headline
    assert state.best
    assert (headline.title, headline.value) == ("accuracy", state.best["valid_accuracy"])
    assert run_scores.headline(state._replace(log=[]), [], None) is None


def test_headline_of_rows_that_were_trained_on_is_none(run: RunConfig) -> None:
    state = run_folder.read_run(run.run_folder)
    settings = run_config.with_overrides(state.run, {"train.train_on_valid": True})
    begun = state._replace(run=settings, summary=None)
    assert begun.best is None
    assert run_scores.headline(begun, [], None) is None


def test_headline_and_scores_are_those_of_the_bundle(run: RunConfig) -> None:
    state = run_folder.read_run(run.run_folder)
    assert state.summary
    bundled = {**state.summary, "best": {"valid_loss": 0.5, "valid_accuracy": 0.9}}  # with n-grams: not in the log
    state = state._replace(summary=bundled)
    assert state.scores == bundled["best"]
    headline = run_scores.headline(state, [], None)
    assert headline
    assert (headline.value, headline.where) == (0.9, "validation")


def test_scored_splits_after_the_scores_of_other_files(run: RunConfig, tmp_path: Path) -> None:
    folder = copied_run(run, tmp_path)
    other = write_csv(tmp_path / "other.csv", [(text, LABELS[0]) for text in HOSTILE])
    found = evaluate.evaluate(folder, [other])
    content = ReportPage(report.report([folder])).content
    assert (content["headline"]["where"], content["headline"]["value"]) == ("other files", found["accuracy"])
    assert content["splits"][0]["id"] == "valid"
    assert "baseline" in content["splits"][0]["compared"]

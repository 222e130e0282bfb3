"""Several runs on the same rows: scores, verdicts, classes and disagreements."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.reports import copied_run
from txclf.artifacts import run_folder
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.evaluation import evaluate
from txclf.reports import paired
from txclf.reports.error_analysis import QUICK, TextRow
from txclf.reports.paired_content import PairedRun, PairedRuns


def compared(*wrong: int, rows: int = 100, is_multilabel: bool = False) -> PairedRuns:
    """Compare runs "a", "b", … of which each predicts so many of the first rows wrong."""
    targets = np.eye(2, dtype=bool)[np.arange(rows) % 2]
    answers = []
    for name, count in zip("abc", wrong, strict=False):
        predicted = targets.copy()
        predicted[:count] = ~predicted[:count]
        answers.append(paired.Answers(name, predicted, np.linspace(0.5, 1, rows).astype(np.float32)))
    sources = [TextRow(f"text {number}", "file.csv", number) for number in range(rows)]
    return paired._compared(targets, answers, sources, ["x", "y"], split="test", is_multilabel=is_multilabel)


def plain(verdict: str) -> str:
    """Return a verdict with plain quotation marks."""
    return verdict.replace("\N{LEFT DOUBLE QUOTATION MARK}", "'").replace("\N{RIGHT DOUBLE QUOTATION MARK}", "'")


def test_compared_better_run_comes_first_with_its_difference() -> None:
    page = compared(40, 10)
    best, other = page.runs
    assert (best.name, best.difference, best.p_value) == ("b", None, None)
    assert best.scores["accuracy"][0] == pytest.approx(0.9)
    assert other.difference
    assert other.difference[0] == pytest.approx(0.3)
    assert other.difference[1] > 0.2
    assert other.p_value == pytest.approx(2 / 2**30)  # McNemar: 30 rows differ, all in favor of one run
    assert plain(page.verdict) == "'b' is better than 'a': accuracy 0.9000, +0.3000 against 'a' (p < 0.001)."
    assert [one.label for one in page.classes] == ["x", "y"]
    assert page.classes[0].f1 == pytest.approx([0.9, 0.6])
    assert page.classes[0].difference[0] == pytest.approx(0.3)


def test_compared_disagreements_are_the_rows_with_different_predictions() -> None:
    page = compared(2, 5)
    assert (page.disagreeing_rows, len(page.disagreements)) == (3, 3)
    assert [row.row for row in page.disagreements] == [4, 3, 2]  # most confident first
    first = page.disagreements[0]
    assert (first.label, list(first.predicted), list(first.right)) == ("x", ["x", "y"], [True, False])


def test_compared_small_difference_may_be_chance() -> None:
    verdict = plain(compared(10, 12).verdict)
    assert verdict.startswith("No run is clearly better. 'a' has the highest accuracy, 0.9000, but +0.0200 against 'b'")
    assert verdict.endswith("may be chance.")
    assert compared(10, 10).verdict == "All runs have the same accuracy, 0.9000."
    assert compared(10, 10).disagreements == []


def test_compared_p_values_of_several_runs_are_corrected() -> None:
    alone, three = compared(10, 18), compared(10, 18, 18)
    assert alone.runs[1].p_value
    assert three.runs[1].p_value == pytest.approx(3 * alone.runs[1].p_value)
    assert plain(compared(10, 12, 60).verdict).endswith("but its difference to 'b' may be chance.")


def test_compared_multilabel_runs_are_ranked_by_macro_f1() -> None:
    page = compared(40, 10, is_multilabel=True)
    assert page.metric == "f1_macro"
    assert set(page.runs[0].scores) == {"f1_micro", "f1_macro"}
    assert page.runs[1].p_value
    assert page.runs[1].p_value < 0.01
    assert page.disagreements[0].confidence == [None, None]


def test_verdict_p_value_at_the_level_may_be_chance() -> None:
    runs = [
        PairedRun(name="a", scores={"accuracy": (0.9, 0.8, 1.0)}, difference=None, p_value=None),
        PairedRun(name="b", scores={"accuracy": (0.8, 0.7, 0.9)}, difference=(0.1, 0.0, 0.2), p_value=0.05),
    ]
    assert "No run is clearly better" in paired.verdict(runs, "accuracy")
    assert "(p = 0.050)" in paired.verdict(runs, "accuracy")


def test_paired_evaluated_runs_are_scored_on_their_test_rows(run: RunConfig, tmp_path: Path) -> None:
    folder = copied_run(run, tmp_path)
    found = evaluate.evaluate(folder)
    state, notes = run_folder.read_run(folder), list[str]()
    page = paired.paired([state, state], ["one", "two"], QUICK, notes)
    assert page
    assert (notes, page.split, page.rows) == ([], "test", found["rows"])
    assert page.runs[0].scores["accuracy"][0] == pytest.approx(found["accuracy"])
    assert {one.label: one.f1[0] for one in page.classes} == pytest.approx(
        {label: scores["f1"] for label, scores in found["per_class"].items()}
    )


def test_paired_runs_without_test_scores_are_compared_on_validation_rows(run: RunConfig) -> None:
    state = run_folder.read_run(run.run_folder)
    page = paired.paired([state, state], ["one", "two"], QUICK, [])
    assert page
    assert page.split == "validation"
    summary = storage.read_json(storage.join(run.run_folder, "summary.json"))
    assert page.runs[0].scores["accuracy"][0] == pytest.approx(summary["best"]["valid_accuracy"])


def test_paired_runs_of_other_tasks_are_not_compared(run: RunConfig) -> None:
    state, notes = run_folder.read_run(run.run_folder), list[str]()
    other = state._replace(run=state.run.model_copy(update={"task": "multilabel"}))
    for states in ([state, other], [other, state]):
        assert paired.paired(states, ["one", "two"], QUICK, notes) is None
    assert notes == ["The runs are not compared row by row, because their tasks differ: classify, multilabel."] * 2


def test_paired_run_that_cannot_be_scored_is_left_out_with_the_reason(run: RunConfig) -> None:
    state, notes = run_folder.read_run(run.run_folder), list[str]()
    assert paired.paired([state, state._replace(summary=None)], ["one", "two"], QUICK, notes) is None
    assert notes == ["`two` is not compared row by row, because it is not finished."]
    notes.clear()
    assert paired.paired([state, state._replace(manifest=None)], ["one", "two"], QUICK, notes) is None
    assert notes == ["`two` is not compared row by row, because its prepared data are gone."]

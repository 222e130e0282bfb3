"""Tables of results."""

from __future__ import annotations

import math
from typing import Any

import pytest
from rich.console import Console

from txclf.artifacts.trials import Result, Trial
from txclf.cli import tables

LABEL_SCORES: dict[str, Any] = {
    "rows": 1200,
    "skipped": 2,
    "trained_rows": 3,
    "accuracy": 0.75,
    "f1_macro": 0.5,
    "f1_minority": 0.25,
    "loss": 0.7,
    "mcc": None,
    "temperature": 1.5,
    "calibration_error": 0.01,
    "calibration_error_before": 0.2,
    "majority": {"accuracy": 0.6, "f1_macro": 0.3, "f1_minority": 0.0},
    "per_class": {
        f"class {number:02d}": {"precision": None, "recall": 0.5, "f1": number / 40, "support": 30}
        for number in range(40)
    },
}


def render(table: Any) -> str:
    """Return a table as text of 120 columns."""
    screen = Console(width=120)
    with screen.capture() as capture:
        screen.print(table)
    return capture.get()


def test_print_scores_labels_shows_baseline_calibration_and_worst_classes(capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_scores(LABEL_SCORES)
    shown, warnings = capsys.readouterr()
    assert warnings.startswith("leak: the model was trained on the texts of 3 of the 1,200 rows, ")
    assert "Scores on 1,200 rows, 2 bad rows skipped" in shown
    assert "majority class" in shown
    assert "n-gram linear model" not in shown
    assert "loss 0.7000  calibration error 0.0100\n" in shown
    assert "calibration error 0.2000 before calibration, 0.0100 after (temperature 1.500)\n" in shown
    assert "Classes, worst first (10 more with --json)" in shown
    assert "class 29" in shown
    assert "class 30" not in shown


def test_print_scores_prediction_sets_take_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    sets = {"0.9": {"coverage": 0.9126, "mean_size": 1.084}, "0.95": {"coverage": 0.9499, "mean_size": 12.5}}
    tables.print_scores(LABEL_SCORES | {"prediction_sets": sets})
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("coverage of sets")]
    assert line == "coverage of sets: 0.913 for 0.9 (1.08 labels), 0.950 for 0.95 (12.50 labels)"
    assert len(line) <= 80
    tables.print_scores(LABEL_SCORES | {"prediction_sets": None})
    assert "coverage of sets" not in capsys.readouterr().out


def test_print_scores_multilabel_shows_ranking_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    result = LABEL_SCORES | {"f1_micro": 0.4, "subset_accuracy": 0.3, "map": 0.6, "lrap": 0.7, "hamming_loss": 0.1}
    result |= {"per_class": {"a": {"f1": 0.5, "support": 3} | dict.fromkeys(("threshold", "precision"), 0.25)}}
    result["per_class"]["a"] |= {"recall": 1.0, "average_precision": 0.625}
    result["majority"] = {"f1_macro": 0.1, "f1_micro": 0.2, "subset_accuracy": 0.3}
    tables.print_scores(result)
    shown = capsys.readouterr().out
    assert "most frequent labels" in shown
    assert "mean average precision 0.6000  LRAP 0.7000  Hamming loss 0.1000" in shown
    assert "0.625" in shown


def test_text_scores_have_the_digits_of_their_metric() -> None:
    result = {"bleu": 12.345, "chrf": 40.0, "exact_match": 0.5, "token_accuracy": 0.25, "perplexity": 3.0, "seconds": 2}
    assert tables.text_scores(result) == [
        ["BLEU", "12.35"],
        ["chrF", "40.00"],
        ["exact match", "0.5000"],
        ["token accuracy", "0.2500"],
        ["perplexity", "3.000"],
        ["seconds", "2.0"],
    ]


def test_trial_table_shortens_keys_if_their_last_parts_differ() -> None:
    results = [Result(Trial(number=3, settings={"train.seed": 1, "data.seed": 2}), 2.0, 0.5, 20, 2.0)]
    assert "train.seed" in render(tables.trial_table("Trials", ["train.seed", "data.seed"], "valid_loss", results, [0]))
    shown = render(tables.trial_table("Trials", ["train.seed", "model.x"], "valid_loss", results, [61]))
    assert "train.seed" not in shown
    assert all(part in shown for part in ("0003", "0.5000", "61 s"))


def test_trial_table_has_at_most_30_rows() -> None:
    results = [Result(Trial(number=number, settings={}), 0.0, math.nan, 0, 0.0) for number in range(33)]
    shown = render(tables.trial_table("Trials", [], "valid_loss", results, [0.0] * 33))
    assert "0029" in shown
    assert "0030" not in shown
    assert "3 more in trials.csv" in shown


@pytest.mark.parametrize(
    ("value", "expected"), [(0.000123456, "0.0001235"), (7, "7"), ("mean", "mean"), (True, "True")]
)
def test_format_value_rounds_floats_to_four_digits(value: Any, expected: str) -> None:
    assert tables.format_value(value) == expected


def test_print_drift_shows_differences_labels_and_findings(capsys: pytest.CaptureFixture[str]) -> None:
    difference = {"value": 0.75, "p_value": 0.00001}
    shares = {"spam": {"known": 0.5, "new": 0.9}, "ham": {"known": 0.5, "new": 0.1}}
    result = {
        "rows": 1200,
        "skipped": 3,
        "vectors": difference,
        "labels": {**difference, "shares": shares},
        "lengths": {"value": 0.01, "p_value": 0.4, "known_median": 7.0, "new_median": 7.5},
        "words": {"unseen": {"known": 0.1, "new": 0.25, "p_value": 0.0002}, "typical": ["invoice\x1b", "due"]},
        "accuracy": {"known": 0.9, "expected": 0.8, "known_confidence": 0.91, "confidence": 0.81},
        "findings": ["predicted labels differ: 40% of the rows would have to change theirs"],
    }
    tables.print_drift(result)
    shown = capsys.readouterr().out
    assert "1,200 new rows, 3 bad rows skipped" in shown
    for cells in (
        ["0.750", "< 0.001"],
        ["7", "7.5", "0.400"],
        ["10.0%", "25.0%"],
        ["0.900", "0.800"],
        ["50.0%", "90.0%"],
    ):
        assert any(all(cell in line for cell in cells) for line in shown.splitlines()), cells
    assert "typical words of new rows: invoice\\x1b, due" in shown
    tables.print_drift(result | {"findings": []})
    shown = capsys.readouterr().out
    assert "no drift found" in shown
    assert "spam" not in shown

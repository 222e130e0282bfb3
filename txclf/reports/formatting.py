"""Differences, shares and metric names as the report pages and the model card show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from txclf.core.text import number
from txclf.reports.content import Fact

TITLES = {
    "accuracy": "accuracy",
    "f1_macro": "macro F1",
    "f1_minority": "F1 of the rarest class",
    "precision_macro": "macro precision",
    "recall_macro": "macro recall",
    "loss": "loss",
    "calibrated_loss": "calibrated loss",
    "mcc": "Matthews correlation",
    "auroc_macro": "AUROC (macro)",
    "calibration_error": "calibration error",
    "f1_micro": "micro F1",
    "map": "mean average precision",
    "subset_accuracy": "subset accuracy",
    "token_accuracy": "token accuracy",
    "exact_match": "exact match",
    "perplexity": "perplexity",
    "bleu": "BLEU",
    "chrf": "chrF",
}
"""Titles of metrics, in the order in which a page lists them."""


def titled(metrics: Mapping[str, Any]) -> list[Fact]:
    """Return the numbers among metrics that have a title, under their titles. Names may start with `valid_`."""
    values = {name.removeprefix("valid_"): value for name, value in metrics.items()}
    return [Fact(title, values[name]) for name, title in TITLES.items() if isinstance(values.get(name), int | float)]


def metric_title(name: str) -> str:
    """Return the title of a metric, or its name without underscores."""
    return TITLES.get(name, name.replace("_", " "))


def signed(value: float) -> str:
    """Format a difference with its sign; one that rounds to nothing has none."""
    return f"{value:+.4f}".replace("-", "\N{MINUS SIGN}") if round(value, 4) else "0.0000"


def with_intervals(facts: Sequence[Fact], metrics: Mapping[str, Any], intervals: Mapping[str, Any]) -> list[Fact]:
    """Add the confidence intervals to facts about metrics that have one."""
    ends = {TITLES[name]: interval for name, interval in intervals.items() if name in metrics}
    return [
        Fact(title, f"{number(value)} ({number(ends[title][0])} to {number(ends[title][1])})")
        if title in ends
        else Fact(title, value)
        for title, value in facts
    ]


def whole(value: float) -> str:
    """Format a number without decimals."""
    return f"{value:,.0f}"


def share(value: float) -> str:
    """Format a share of 1 as a percentage."""
    return f"{value:.1%}"

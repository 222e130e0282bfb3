"""Content of a comparison of runs on the same rows, as dataclasses; `paired` makes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, kw_only=True)
class PairedRun:
    """Scores of one run on the rows that all compared runs have."""

    name: str
    scores: Mapping[str, tuple[float, ...]]
    """Value and ends of the 95 % confidence interval by metric."""
    difference: tuple[float, ...] | None
    """What the best run is ahead in `PairedRuns.metric`, with its interval; None for the best run itself."""
    p_value: float | None
    """p-value of `difference`, times the number of pairs of runs; None for the best run."""


class ComparedClass(NamedTuple):
    """One class in a comparison."""

    label: str
    rows: int
    f1: Sequence[float]
    """F1 by run, in the order of `PairedRuns.runs`."""
    difference: tuple[float, ...]
    """F1 of the best run less that of the second one, with the ends of its interval."""


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """Row that the runs predict differently. The sequences are in the order of `PairedRuns.runs`."""

    text: str
    file: str
    row: int
    label: str
    predicted: Sequence[str]
    confidence: Sequence[float | None]
    """Probability of each prediction; None in multilabel tasks."""
    right: Sequence[bool]


@dataclass(frozen=True, kw_only=True)
class PairedRuns:
    """Runs compared on the same rows."""

    split: str
    rows: int
    metric: str
    """Metric that ranks the runs."""
    verdict: str
    runs: Sequence[PairedRun]
    """Runs, best first."""
    classes: Sequence[ComparedClass]
    disagreements: Sequence[Disagreement]
    disagreeing_rows: int
    """Rows that are predicted differently, shown or not."""

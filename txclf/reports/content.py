"""Content of the report pages: one frozen dataclass per page kind, made of the dataclasses of its parts.

`run_report` and `search_report` build a page, `html.render` renders it. The templates and the scripts of the page see
the same fields: `dataclasses.asdict` gives the template variables and the JSON that is embedded in the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from txclf.artifacts.trials import State
from txclf.reports.paired_content import PairedRuns

ALL_CLASSES = -1
"""`ClassCurves.class_id` of the curves over the probabilities of all classes together."""


class Fact(NamedTuple):
    """Name and value in a list of facts."""

    name: str
    value: Any


class EfficiencyFigure(NamedTuple):
    """Row of the efficiency table."""

    name: str
    value: str
    meaning: str


class ClassDifference(NamedTuple):
    """F1 of the n-gram baseline for one class, and the difference of the model to it."""

    baseline: float
    difference: float
    low: float
    """Lower end of the 95 % confidence interval of `difference`."""
    high: float


class ChangedSetting(NamedTuple):
    """Run-file key whose value is not the default, with both values as YAML text."""

    key: str
    value: str
    default: str
    """Empty if the defaults do not have the key."""


@dataclass(frozen=True)
class Bar:
    """Bar next to the headline score."""

    title: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Headline:
    """Score at the top of a run's page."""

    title: str
    value: float
    interval: tuple[float, float] | None = None
    """Ends of the 95 % confidence interval of `value`."""
    where: str
    """Rows that were scored, for example `validation`."""
    rows: int | None = None
    """Number of rows that were scored."""
    bars: Sequence[Bar] = ()
    """Score of the model, then those of the baselines."""
    beats_baseline: bool | None = None
    """True if the score is higher than that of the n-gram baseline; None without that baseline."""
    difference: tuple[float, float, float] | None = None
    """Difference to the n-gram baseline on the same rows, and the ends of its 95 % confidence interval."""
    note: str = ""


@dataclass(frozen=True)
class LearningCurves:
    """Logged values of a run."""

    points: Mapping[str, Sequence[Sequence[float]]]
    """(step, epoch, value) triples by metric."""
    best_step: int | None
    """Step of the best validation; None before the first one."""
    monitor: str
    """Metric that ranks the validations."""


@dataclass(frozen=True, kw_only=True)
class ClassCurves:
    """ROC curve, precision-recall curve and the areas under them, for one class against the rest."""

    class_id: int
    """Column of the class in the probabilities, or `ALL_CLASSES`."""
    fpr: Sequence[float]
    """False positive rates."""
    tpr: Sequence[float]
    """True positive rate at each of `fpr`."""
    auc: float
    """Area under the ROC curve."""
    recall: Sequence[float]
    precision: Sequence[float]
    """Precision at each of `recall`."""
    threshold: Sequence[float]
    """Least probability of a positive prediction at each of `recall`."""
    ap: float
    """Average precision."""


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """Row with its prediction, which is wrong unless it is among the correct rows of a split."""

    text: str
    file: str
    row: int
    label: str
    """True label; in multilabel tasks the missing label, or `error_analysis.NO_LABEL`."""
    predicted: str
    """Predicted label; in multilabel tasks the label that is wrongly predicted, or `error_analysis.NO_LABEL`."""
    label_probability: float
    """Probability of the true label; in multilabel tasks that of the label that is wrong."""
    top: Sequence[tuple[str, float]]
    """Likely labels with their probabilities, most likely first."""
    true_labels: Sequence[str]
    """All labels of the row."""
    words: Sequence[tuple[str, float | None]] = ()
    """`text` in pieces with their weights for the label in question; empty if they were not weighed."""


class Fidelity(NamedTuple):
    """How far word weights are faithful to the model, over some mistakes."""

    rows: int
    probability: float
    """Mean probability of the label in question."""
    strongest: float
    """How much it falls without a fifth of the words, those with the largest weights."""
    random: float
    """How much it falls without as many words that are drawn at random."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """Row of a seq2seq split with the generated text."""

    text: str
    target: str
    output: str
    right: bool
    """True if output and target are equal but for white space."""
    file: str
    row: int


@dataclass(frozen=True, kw_only=True)
class LabelSplit:
    """Section of a run's page about one split whose rows have labels."""

    id: str
    title: str
    rows: int
    """Rows that were scored."""
    total_rows: int
    """Rows of the split."""
    labels: Sequence[str]
    confusion: Sequence[tuple[int, int, int]] | None
    """(true class, predicted class, rows) of the cells that are not zero; None in multilabel tasks."""
    per_class: Mapping[str, Mapping[str, Any]]
    """Scores by label, as in `metrics.json`."""
    differences: Mapping[str, ClassDifference]
    """Differences to the n-gram baseline by label; empty if it was not scored on these rows."""
    metrics: Mapping[str, Any]
    """Scores over all classes, as in `metrics.json`."""
    intervals: Mapping[str, tuple[float, float]]
    """Ends of the 95 % confidence intervals of some of `metrics`."""
    compared: Mapping[str, Mapping[str, Any]]
    """Scores of `baseline` and `majority` on the same rows, as in `metrics.json`."""
    reliability: Sequence[Sequence[float]]
    """(mean confidence, accuracy, count) of each bin."""
    uncalibrated: Sequence[Sequence[float]] | None
    """`reliability` before calibration; None if the bundle is not calibrated."""
    coverage: Sequence[Sequence[float]]
    """(share of rows answered, accuracy on them, least confidence) if only confident rows are; empty in multilabel."""
    curves: Sequence[ClassCurves]
    mistakes: Sequence[Mistake]
    fidelity: Fidelity | None
    """Of the word weights of `mistakes`; None if there are none."""
    correct: Sequence[Mistake]
    """Some rows with a right prediction, least confident first."""


@dataclass(frozen=True, kw_only=True)
class ExampleSplit:
    """Section of a run's page about one seq2seq split."""

    id: str
    title: str
    rows: int
    """Rows that are shown."""
    total_rows: int
    """Rows of the split."""
    metrics: Mapping[str, Any]
    """Scores of the whole split, as in `metrics.json` or `metrics.jsonl`."""
    examples: Sequence[Example]


@dataclass(frozen=True, kw_only=True)
class SplitAudit:
    """Counts of one prepared split."""

    name: str
    rows: int
    rejected: int
    tokens: int
    truncated_rows: int
    truncated_token_share: float
    duplicates: int
    duplicates_of_train: int


@dataclass(frozen=True)
class LabelRows:
    """Number of rows with one label, by split."""

    label: str
    rows: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class DataAudit:
    """Audit of the prepared data."""

    splits: Sequence[SplitAudit]
    reasons: Sequence[tuple[str, int]]
    """Reasons for rejected rows and their numbers, most frequent first."""
    conflicting_texts: int
    """Training texts that occur under more than one label."""
    labels: Sequence[LabelRows]
    edges: Sequence[int]
    """Lower edges of the length bins, in tokens."""
    max_length: int
    """Tokens after which texts are truncated."""
    lengths: Mapping[str, Sequence[int]]
    """Rows per length bin, by split."""


@dataclass(frozen=True)
class Reproduction:
    """Commands that repeat a run, and the versions and hashes that its result depends on."""

    commands: Sequence[str]
    facts: Sequence[Fact]
    versions: Sequence[Fact]
    """Versions on the machine that made the page."""


@dataclass(frozen=True, kw_only=True)
class RunPage:
    """Page of one run."""

    name: str
    folder: str
    is_multilabel: bool
    is_seq2seq: bool
    uses_ngrams: bool
    """True if the linear model on n-grams may answer too; the curves are of the network alone."""
    num_labels: int
    finished: bool
    notes: Sequence[str]
    advice: Sequence[str]
    """Sentences about problems of a finished run, each with the key to change."""
    headline: Headline | None
    facts: Sequence[Fact]
    splits: Sequence[LabelSplit | ExampleSplit]
    curves: LearningCurves
    data: DataAudit | None
    """None if the prepared data are gone."""
    efficiency: Sequence[EfficiencyFigure]
    """Empty before the run is finished."""
    seconds: Sequence[Fact]
    """Seconds of the last attempt by activity. Empty before the run is finished."""
    run_file: str
    changed: Sequence[ChangedSetting]
    reproduce: Reproduction
    kind: Literal["run"] = field(default="run", init=False)

    @property
    def label_splits(self) -> list[LabelSplit]:
        """Sections about splits whose rows have labels."""
        return [split for split in self.splits if isinstance(split, LabelSplit)]


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One trial of a search."""

    number: int
    state: State
    settings: Sequence[Any]
    """Values of `SearchPage.keys`."""
    best: float | None
    """Best value of the metric; None before the first validation."""
    best_epoch: float
    epochs: float
    """Epochs trained."""
    seconds: float
    reason: str
    """Reason of a failure."""
    history: Sequence[Sequence[float]]
    """(epoch, value) of each validation."""
    page: str = ""
    """Path of the trial's page, relative to that of the search; empty if there is none."""


@dataclass(frozen=True, kw_only=True)
class SearchPage:
    """Page of one search."""

    name: str
    folder: str
    finished: bool
    notes: Sequence[str]
    metric: str
    """Metric that ranks the trials."""
    lower: bool
    """True if lower values of the metric are better."""
    keys: Sequence[str]
    """Run-file keys that are searched."""
    log_keys: Sequence[str]
    """The `keys` with a logarithmic scale."""
    trials: Sequence[TrialRow]
    """Trials, best first."""
    best: TrialRow | None
    importance: Sequence[tuple[str, float]]
    """Keys with their importance, a share of 1, most important first."""
    facts: Sequence[Fact]
    run_file: str
    kind: Literal["search"] = field(default="search", init=False)


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """One run of a comparison."""

    name: str
    folder: str
    finished: bool
    facts: Sequence[Fact]
    metrics: Mapping[str, float]
    curves: LearningCurves


@dataclass(frozen=True, kw_only=True)
class ComparisonPage:
    """Page that compares several runs."""

    name: str
    paired: PairedRuns | None
    """None if fewer than two runs can be scored on the same rows."""
    runs: Sequence[ComparedRun]
    metrics: Sequence[str]
    """Columns of the metrics table: metrics of all runs first, then those of some."""
    differing: Sequence[tuple[str, Sequence[str]]]
    """Run-file keys that differ, with the value in each run."""
    notes: Sequence[str]
    kind: Literal["comparison"] = field(default="comparison", init=False)


@dataclass(frozen=True, kw_only=True)
class ResultPage:
    """Page of what `txclf drift`, `txclf curve` or `txclf audit` found out about a run."""

    name: str
    folder: str
    result: Mapping[str, Any]
    """What the function of the same name returns; with what is drawn: of a drift also `shares`, of an audit `map`."""
    kind: Literal["drift", "learning_curve", "audit"]
    notes: Sequence[str] = ()


Page = RunPage | SearchPage | ComparisonPage | ResultPage
"""Content of any report page."""

"""Audit of the raw files: the result of the scan, and the checks that a model can learn from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from txclf.config.run_config import RunConfig
from txclf.core.errors import DataError
from txclf.core.text import shown
from txclf.data import detect, shards
from txclf.data.duplicates import RowHashes
from txclf.data.records import Reject

MAX_SHOWN_REJECTS = 20
MAX_REASONS = 1000
"""Distinct reasons that are counted separately, because a reason may name a value of its row."""
OTHER_REASONS = "other reasons"


@dataclass
class Audit:
    """Result of scanning the files of one split."""

    rejects: list[Reject] = field(default_factory=list)
    """First rejected rows, in the order of the files."""
    rejected: int = 0
    """Number of all rejected rows."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Rejected rows by reason."""
    hashes: RowHashes = field(default_factory=RowHashes)
    """Hash of the text of each accepted row; for the training files also that of the labels, or of the target."""
    chars: int = 0
    """Characters of the texts of the accepted rows."""
    labels: Counter[str] = field(default_factory=Counter)
    """Rows per label; empty if the task has no labels."""
    read_labels: set[str] = field(default_factory=set)
    """Labels of the training files before corrections, if there are any."""
    corrected: Counter[int] = field(default_factory=Counter)
    """Rows by the number of their correction; dropped rows are not among the accepted ones."""
    label_kinds: set[str] = field(default_factory=set)
    """Types of the labels in the files, as in `records.Rows`."""
    advice: str | None = None
    """How to read rejected rows that are not valid in the encoding of the run."""

    def reject(self, rejects: Sequence[Reject]) -> None:
        """Count rejected rows, and keep the first ones."""
        self.rejected += len(rejects)
        self.rejects += rejects[: max(0, MAX_SHOWN_REJECTS - len(self.rejects))]
        for reject in rejects:
            is_counted = reject.reason in self.reasons or len(self.reasons) < MAX_REASONS
            self.reasons[reject.reason if is_counted else OTHER_REASONS] += 1


def check(run: RunConfig, split: str, audit: Audit) -> None:
    """Check that a model can learn from a split.

    Raises `DataError` for bad rows under `on_bad_row: fail`, for a split without rows, and for training labels that no
    classifier can learn.
    """
    key = f"`data.{split}`"
    audit.advice = detect.advice_for_rows(audit.rejects, run.data.encoding)
    if audit.rejects and run.data.on_bad_row == "fail":
        lines = "\n".join(f"  {reject.file}: row {reject.row:,}: {reject.reason}" for reject in audit.rejects)
        count = len(audit.rejects)
        more = f"the first {count} bad rows" if count == MAX_SHOWN_REJECTS else f"{count} bad row(s)"
        fix = audit.advice or "Fix them, or skip them with `data.on_bad_row=skip`."
        raise DataError(f"{key}: {more}:\n{lines}\n{fix}")
    rows, labels = len(audit.hashes), sorted(audit.labels)
    if not rows:
        paths = ", ".join(getattr(run.data, split))
        kind = "rows" if split == shards.UNLABELLED else "labelled rows"
        problem = f"no usable row in {paths}" if audit.rejected else f"no row in {paths}: no bytes, or only a header"
        if audit.corrected and not audit.rejected:
            problem = f"`data.corrections` leaves out every row of {paths}"
        raise DataError(f"{key}: {problem}. {audit.advice or f'Name files with {kind}.'}")
    if split != "train" or not run.task_spec.has_labels:
        return
    if run.task_spec.is_multilabel and not labels:
        raise DataError(
            f"{key}: no row has a label in column `{run.data.label}`. Set `data.label` to the label column."
        )
    if len(labels) == 1 and audit.labels[labels[0]] == rows:
        raise DataError(f"{key}: every row has the label `{shown(labels[0])}`. A classifier needs at least two labels.")
    some = ", ".join(map(shown, labels[:5]))
    if "fraction" in audit.label_kinds:
        raise DataError(
            f"{key}: column `{run.data.label}` holds numbers with fractions ({some}), not labels. Set `data.label` to "
            "the label column."
        )
    if len(labels) > max(2, audit.labels.total() // 2):
        raise DataError(
            f"{key}: column `{run.data.label}` has {len(labels):,} different labels in {rows:,} rows ({some} …): it "
            "looks like an id or a measurement. Set `data.label` to the label column."
        )

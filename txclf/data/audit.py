"""Audit of the raw files: the result of the scan, and the checks that a model can learn from it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from txclf.config.run_config import RunConfig
from txclf.core.errors import DataError
from txclf.core.hashing import UInt64s
from txclf.data.records import Reject

MAX_SHOWN_REJECTS = 20


@dataclass
class Audit:
    """Result of scanning the files of one split."""

    rejects: list[Reject] = field(default_factory=list)
    """Rejected rows, in the order of the files."""
    hashes: UInt64s = field(default_factory=lambda: np.empty(0, np.uint64))
    """Hash of the text of each accepted row, (rows,)."""
    label_hashes: UInt64s = field(default_factory=lambda: np.empty(0, np.uint64))
    """Hash of the labels, or of the target, of each accepted row, (rows,)."""
    labels: Counter[str] = field(default_factory=Counter)
    """Rows per label; empty if the task has no labels."""
    float_labels: bool = False
    """True if a file holds labels that are floating-point numbers."""


def check(run: RunConfig, split: str, audit: Audit) -> None:
    """Check that a model can learn from a split.

    Raises `DataError` for bad rows under `on_bad_row: fail`, for a split without rows, and for training labels that no
    classifier can learn.
    """
    key = f"`data.{split}`"
    if audit.rejects and run.data.on_bad_row == "fail":
        shown = audit.rejects[:MAX_SHOWN_REJECTS]
        lines = "\n".join(f"  {reject.file}: row {reject.row:,}: {reject.reason}" for reject in shown)
        more = (
            f"the first {MAX_SHOWN_REJECTS} bad rows" if len(shown) == MAX_SHOWN_REJECTS else f"{len(shown)} bad row(s)"
        )
        raise DataError(f"{key}: {more}:\n{lines}\nFix them, or skip them with `data.on_bad_row=skip`.")
    rows, labels = len(audit.hashes), sorted(audit.labels)
    if not rows:
        paths = ", ".join(getattr(run.data, split))
        raise DataError(f"{key}: no usable row in {paths}. Name files with labelled rows.")
    if split != "train" or not run.task_spec.has_labels:
        return
    if run.task_spec.is_multilabel and not labels:
        raise DataError(
            f"{key}: no row has a label in column `{run.data.label}`. Set `data.label` to the label column."
        )
    if len(labels) == 1 and audit.labels[labels[0]] == rows:
        raise DataError(f"{key}: every row has the label `{labels[0]}`. A classifier needs at least two labels.")
    some = ", ".join(labels[:5])
    if audit.float_labels and any("." in label or "e" in label for label in labels):
        raise DataError(
            f"{key}: column `{run.data.label}` holds numbers with fractions ({some}), not labels. Set `data.label` to "
            "the label column."
        )
    if len(labels) > max(2, audit.labels.total() // 2):
        raise DataError(
            f"{key}: column `{run.data.label}` has {len(labels):,} different labels in {rows:,} rows ({some} …): it "
            "looks like an id or a measurement. Set `data.label` to the label column."
        )

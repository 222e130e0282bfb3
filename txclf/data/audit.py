"""What the scan of raw files found, and whether a model can learn from it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from txclf.config.run_config import RunConfig
from txclf.core.errors import DataError
from txclf.core.hashing import UInt64s
from txclf.data.records import Reject

SHOWN_REJECTS = 20


@dataclass
class Audit:
    """What the scan of one split's files found."""

    rejects: list[Reject] = field(default_factory=list)
    hashes: UInt64s = field(default_factory=lambda: np.empty(0, np.uint64))
    label_hashes: UInt64s = field(default_factory=lambda: np.empty(0, np.uint64))
    labels: Counter[str] = field(default_factory=Counter)
    float_labels: bool = False


def check(run: RunConfig, split: str, audit: Audit) -> None:
    """Raises `DataError` for bad rows under `on_bad_row: fail`, and for what no classifier can learn from."""
    key = f"`data.{split}`"
    if audit.rejects and run.data.on_bad_row == "fail":
        shown = audit.rejects[:SHOWN_REJECTS]
        lines = "\n".join(f"  {reject.file}: row {reject.row:,}: {reject.reason}" for reject in shown)
        more = f"the first {SHOWN_REJECTS} bad rows" if len(shown) == SHOWN_REJECTS else f"{len(shown)} bad row(s)"
        raise DataError(f"{key}: {more}:\n{lines}\nmend them, or leave them out by `data.on_bad_row=skip`")
    rows, labels = len(audit.hashes), sorted(audit.labels)
    if not rows:
        raise DataError(f"{key}: no usable row in {', '.join(getattr(run.data, split))}")
    if split != "train" or run.task == "seq2seq":
        return
    if run.task == "multilabel" and not labels:
        raise DataError(f"{key}: no row has a label in column `{run.data.label}`")
    if len(labels) == 1 and audit.labels[labels[0]] == rows:
        raise DataError(f"{key}: every row has the label `{labels[0]}`: a classifier needs at least two")
    some = ", ".join(labels[:5])
    if audit.float_labels and any("." in label or "e" in label for label in labels):
        raise DataError(f"{key}: column `{run.data.label}` holds numbers with fractions ({some}), not labels")
    if len(labels) > max(2, audit.labels.total() // 2):
        raise DataError(
            f"{key}: column `{run.data.label}` has {len(labels):,} different labels in {rows:,} rows ({some} …): it "
            "looks like an id or a measurement; set `data.label` to the column of labels"
        )

"""Checks of the scanned rows of a split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.core.errors import DataError
from txclf.data.audit import MAX_REASONS, MAX_SHOWN_REJECTS, OTHER_REASONS, Audit, check
from txclf.data.records import Reject


def make_run(**settings: Any) -> RunConfig:
    return run_config.parse({"data": {"train": "a.csv", "test": "b.csv"}, **settings})


def make_audit(
    rows: int = 10, labels: dict[str, int] | None = None, rejects: Sequence[Reject] = (), **facts: Any
) -> Audit:
    counts = Counter({"a": 5, "b": 5} if labels is None else labels)
    audit = Audit(labels=counts, **facts)
    audit.hashes.append(np.arange(rows, dtype=np.uint64))
    audit.reject(rejects)
    return audit


def test_check_good_rows_pass() -> None:
    check(make_run(), "train", make_audit())


def test_check_bad_rows_are_named_up_to_the_maximum() -> None:
    rejects = [Reject("/a.csv", number, "no text") for number in range(1, 60)]
    with pytest.raises(DataError) as error:
        check(make_run(), "train", make_audit(rejects=rejects))
    message = str(error.value)
    assert f"`data.train`: the first {MAX_SHOWN_REJECTS} bad rows" in message
    assert message.count("/a.csv: row ") == MAX_SHOWN_REJECTS
    assert message.endswith("Fix them, or skip them with `data.on_bad_row=skip`.")


def test_check_skipped_bad_rows_pass() -> None:
    run = run_config.with_overrides(make_run(), {"data.on_bad_row": "skip"})
    check(run, "train", make_audit(rejects=[Reject("/a.csv", 1, "no text")]))


@pytest.mark.parametrize(
    ("audit", "message"),
    [
        (make_audit(rows=0, labels={}), r"no row in .*a\.csv: no bytes, or only a header"),
        (make_audit(labels={"a": 10}), "every row has the label `a`"),
        (make_audit(labels={"0.5": 5, "1.5": 5}, label_kinds={"fraction"}), "numbers with fractions"),
        (make_audit(rows=50, labels={str(i): 1 for i in range(50)}), "looks like an id or a measurement"),
    ],
)
def test_check_labels_that_cannot_be_learned_are_refused(audit: Audit, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check(make_run(), "train", audit)


def test_check_whole_number_among_words_passes() -> None:
    check(make_run(), "train", make_audit(labels={"1": 5, "never": 5, "e.g.": 5}, label_kinds={"float", "string"}))


def test_check_test_split_may_have_one_label() -> None:
    check(make_run(), "test", make_audit(labels={"a": 10}))


def test_check_multilabel_rows_without_any_label_are_refused() -> None:
    with pytest.raises(DataError, match="no row has a label in column `label`"):
        check(make_run(task="multilabel"), "train", make_audit(labels={}))


def test_check_seq2seq_needs_no_labels() -> None:
    check(make_run(task="seq2seq"), "train", make_audit(labels={}))


def test_audit_of_many_rejects_keeps_the_first_rows_and_some_reasons() -> None:
    audit = Audit()
    for start in range(0, 5_000, 500):
        audit.reject([Reject("/a.csv", row, f"label `{row}` is unknown") for row in range(start, start + 500)])
    audit.reject([Reject("/a.csv", 5_000, "label `7` is unknown")])
    assert [reject.row for reject in audit.rejects] == list(range(MAX_SHOWN_REJECTS))
    assert audit.rejected == audit.reasons.total() == 5_001
    assert audit.reasons["label `7` is unknown"] == 2
    assert audit.reasons[OTHER_REASONS] == 5_000 - MAX_REASONS


def test_check_rows_in_another_encoding_name_it(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text,label\nGrüße,x\n".encode("latin-1"))
    audit = Audit()
    audit.reject([Reject(f"{tmp_path}/a.csv", 1, "not valid UTF-8")])
    with pytest.raises(
        DataError, match=r"row 1: not valid UTF-8\nIt looks like latin-1: set `data\.encoding: latin-1`"
    ):
        check(make_run(), "train", audit)

"""Macro F1 against torchmetrics, and with more classes than it can count."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.classification import MulticlassF1Score

from txclf.metrics.macro_f1 import MacroF1


@pytest.mark.parametrize("classes", [2, 5, 300])
def test_macro_f1_equals_torchmetrics(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    ours, theirs = MacroF1(classes), MulticlassF1Score(classes, average="macro")
    for rows in (1, 40, 7):
        logits = torch.randn(rows, classes, generator=generator)
        labels = torch.randint(0, max(2, classes // 2), (rows,), generator=generator)
        ours.update(logits, labels)
        theirs.update(logits, labels)
    assert float(ours.compute()) == pytest.approx(float(theirs.compute()), rel=1e-6)
    ours.reset()
    ours.update(torch.eye(classes), torch.arange(classes))
    assert float(ours.compute()) == 1.0


def test_macro_f1_of_a_million_classes_holds_three_counts_per_class() -> None:
    metric = MacroF1(1_000_000)
    logits = torch.zeros(4, 1_000_000)
    logits[torch.arange(4), torch.tensor([3, 5, 5, 999_999])] = 1.0
    metric.update(logits, torch.tensor([3, 5, 7, 999_999]))
    # 3 and 999,999 are right, 5 is right once and wrong once, 7 is missed.
    assert float(metric.compute()) == pytest.approx((1 + 1 + 2 / 3 + 0) / 4)
    assert sum(state.numel() for state in (metric.hits, metric.labels, metric.predictions)) == 3_000_000

"""Macro F1 of a classifier with many classes, as a metric of torchmetrics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class MacroF1(Metric):
    """Mean F1 of the classes that occur in the labels or in the predictions.

    Equals `torchmetrics.classification.MulticlassF1Score(C, average="macro")`, which counts (C, C) cells in each batch:
    800 MB at 10,000 classes. This counts (C,).
    """

    full_state_update = False
    hits: Tensor
    labels: Tensor
    predictions: Tensor

    def __init__(self, num_classes: int, **settings: Any) -> None:
        super().__init__(**settings)
        for name in ("hits", "labels", "predictions"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits_BC: Tensor, labels_B: Tensor) -> None:
        """Count a batch."""
        predicted_B = logits_BC.argmax(dim=1)
        ones_B = torch.ones_like(labels_B)
        self.labels.scatter_add_(0, labels_B, ones_B)
        self.predictions.scatter_add_(0, predicted_B, ones_B)
        self.hits.scatter_add_(0, labels_B, (predicted_B == labels_B).to(torch.long))

    def compute(self) -> Tensor:
        """Return the mean F1 over all batches, a float32 scalar."""
        total = self.labels + self.predictions
        return (2 * self.hits[total > 0] / total[total > 0]).mean()

"""The LightningModule of `task: multilabel`: every label of a row is a yes or no of its own.

Shapes: B rows, C labels, K cells of scores.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from txclf.data.batches import Batch
from txclf.data.labels import targets
from txclf.metrics import binned
from txclf.training.losses import binary_loss
from txclf.training.module import EncoderModule


class MultilabelModule(EncoderModule):
    """Trains by binary cross-entropy. A row's loss is the mean over the labels, a step's the mean over its rows.

    `class_weights` (C,) multiply the loss of the rows that have a label.
    """

    def add_states(self) -> None:
        self.sums: Tensor
        """Of a validation: loss, rows, rows all right."""
        self.register_buffer("sums", torch.zeros(3, dtype=torch.float64), persistent=False)
        self.counts: Tensor
        self.register_buffer(
            "counts", torch.zeros(2, self.num_classes, binned.CELLS, dtype=torch.int64), persistent=False
        )

    def training_loss(self, logits_BC: Tensor, labels: Tensor) -> Tensor:
        train, targets_BC = self.config.train, targets(labels, self.num_classes)
        weights: Any = self.class_weights
        return binary_loss(logits_BC, targets_BC, weights, train.label_smoothing, train.focal_gamma)

    def on_validation_epoch_start(self) -> None:
        self.sums.zero_()
        self.counts.zero_()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits_BC = self.logits(batch)
        targets_BC = targets(batch["labels"], self.num_classes)
        right_B = ((logits_BC >= 0) == (targets_BC > 0)).all(dim=1)
        found = [binary_loss(logits_BC, targets_BC), torch.tensor(len(right_B)), right_B.sum()]
        self.sums += torch.stack([value.to(self.sums) for value in found])
        self.counts += binned.counted(logits_BC, targets_BC)

    def on_validation_epoch_end(self) -> None:
        # Sums and counts are added over ranks once.
        loss, rows, right = self.trainer.strategy.reduce(self.sums, reduce_op="sum").tolist()
        counts = self.trainer.strategy.reduce(self.counts, reduce_op="sum")
        self.valid_metrics = {
            "valid_loss": loss / rows,
            **binned.ranking(counts),
            "valid_subset_accuracy": right / rows,
            "valid_rows": int(rows),
        }

"""The LightningModule of `task: multilabel`: each label of a row is a binary decision.

Shapes: B rows, C labels, K cells of scores.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from txclf.data.labels import targets
from txclf.metrics import binned, calibration
from txclf.training.losses import binary_loss
from txclf.training.module import EncoderModule


class MultilabelModule(EncoderModule):
    """Module of `task: multilabel`, trained by binary cross-entropy.

    The loss of a row is the mean over the labels, that of a step the mean over its rows. `class_weights` (C,) multiply
    the loss of the rows that have a label. Metrics: `loss`, `calibrated_loss` (with the best temperature), `map`,
    `f1_macro`, `f1_micro`, `subset_accuracy`, `rows`.
    """

    def add_states(self) -> None:
        """Make the states of the scores."""
        self.sums: Tensor
        """Loss, rows, and rows whose labels are all right."""
        self.register_buffer("sums", torch.zeros(3, dtype=torch.float64), persistent=False)
        self.tempered: Tensor
        self.register_buffer(
            "tempered", torch.zeros(len(calibration.TEMPERATURES), dtype=torch.float64), persistent=False
        )
        self.counts: Tensor
        self.register_buffer(
            "counts", torch.zeros(2, self.num_classes, binned.CELLS, dtype=torch.int64), persistent=False
        )

    def training_loss(self, logits_BC: Tensor, labels: Tensor) -> Tensor:
        """Return binary cross-entropy or binary focal loss, summed over the rows."""
        train, targets_BC = self.config.train, targets(labels, self.num_classes)
        weights: Any = self.class_weights
        return binary_loss(logits_BC, targets_BC, weights, train.label_smoothing, train.focal_gamma)

    def reset_scores(self) -> None:
        """Forget the rows scored so far."""
        self.sums.zero_()
        self.tempered.zero_()
        self.counts.zero_()

    def update_scores(self, batch: Any) -> None:
        """Score the rows of a batch."""
        logits_BC = self.logits(batch)
        targets_BC = targets(batch["labels"], self.num_classes)
        right_B = ((logits_BC >= 0) == (targets_BC > 0)).all(dim=1)
        values = [binary_loss(logits_BC, targets_BC), torch.tensor(len(right_B)), right_B.sum()]
        self.sums += torch.stack([value.to(self.sums) for value in values])
        self.tempered += calibration.tempered_losses(logits_BC, targets_BC)
        self.counts += binned.counted(logits_BC, targets_BC)

    def compute_scores(self) -> dict[str, float]:
        """Return the metrics of all rows scored on all ranks."""
        loss, rows, right = self.reduce_sum(self.sums).tolist()
        ranking = binned.ranking(self.reduce_sum(self.counts))
        return {
            "loss": loss / rows,
            "calibrated_loss": float(self.reduce_sum(self.tempered).min() / rows),
            **{name.removeprefix("valid_"): value for name, value in ranking.items()},
            "subset_accuracy": right / rows,
            "rows": int(rows),
        }

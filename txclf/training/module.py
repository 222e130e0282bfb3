"""The LightningModule: loss, metrics, optimizer and learning-rate schedule.

Shapes: B rows, T tokens, C classes.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from txclf.config.run_config import RunConfig
from txclf.data.batches import Batch
from txclf.model.classifier import TransformerClassifier, by_row
from txclf.training import sharded_tensors
from txclf.training.losses import focal_loss
from txclf.training.optim import learning_rate_factor, parameter_groups


class TrainingModule(pl.LightningModule):
    """Trains a model so that a step means the same on any number of ranks.

    The loss of a part of a batch is its sum divided by the `step_size` of the *global* batch (its rows, or target
    tokens), times what Lightning and DDP divide by afterwards. So uneven parts weigh right, and the gradient is that of
    the mean over all of them.

    A subclass has `summed_loss(batch)` and validation steps that leave `valid_metrics`. `total_steps` counts optimizer
    steps of the whole run; `start_step` is where a resumed run goes on.
    """

    def __init__(
        self, config: RunConfig, model: nn.Module, total_steps: int, start_step: int = 0, world_size: int = 1
    ) -> None:
        super().__init__()
        self.config = config
        self.model = model
        # Compiled by name, so that the state's keys are the same with and without.
        self.network: nn.Module = torch.compile(model, dynamic=True) if config.train.compile else model  # type: ignore[assignment]
        self.total_steps = total_steps
        self.start_step = start_step
        # Lightning cannot clip gradients that a fused optimizer unscales itself, as it would with fp16.
        self.fused = config.train.precision != "fp16" and config.compute.strategy != "fsdp"
        self.divided_by = world_size * config.train.micro_batches
        # Sums stay on the device: reading one would wait for it. Those of training are this rank's share.
        self.step_loss: Tensor
        self.train_loss_sum: Tensor
        for name in ("step_loss", "train_loss_sum"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64), persistent=False)
        # Steps with a finite gradient since the last log line; the last step; the first whose gradient was not finite.
        self.good_steps: Tensor
        self.last_step: Tensor
        self.first_bad: Tensor
        for name, value in (("good_steps", 0), ("last_step", start_step), ("first_bad", 0)):
            self.register_buffer(name, torch.tensor(value), persistent=False)
        self.valid_metrics: dict[str, float] = {}

    def summed_loss(self, batch: Any) -> Tensor:
        """The training loss, summed over what `step_size` counts."""
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.summed_loss(batch)
        return self.scaled(loss, loss, batch)

    def scaled(self, loss: Tensor, shown: Tensor, batch: Any) -> Tensor:
        """A summed loss as Lightning is to have it; `shown` goes to the log."""
        self.step_loss += shown.detach().double() / batch["step_size"]
        scale: float = self.divided_by / batch["step_size"]
        return loss * scale

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Scales the step's gradient down to `train.max_grad_norm`; one that is not finite never reaches the weights.

        All ranks hold the same gradient here, so they judge alike without asking each other. The fused optimizer skips
        the step on the device, as for a gradient scaler; with fp16 the scaler itself does.
        """
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        norm = sharded_tensors.whole(nn.utils.get_total_norm(gradients)).to(self.device)
        finite = torch.isfinite(norm)
        clip_norm = self.config.train.max_grad_norm
        if self.fused:
            fused: Any = self.optimizers(use_pl_optimizer=False)
            fused.found_inf = (~finite).float()
            if clip_norm:  # divided by as the weights are updated, which saves a pass over all gradients
                fused.grad_scale = (norm / clip_norm).clamp(min=1.0)
        elif clip_norm:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), clip_norm, norm)
        if not self.fused and self.config.train.precision != "fp16" and not finite:
            self.zero_grad()
        self.last_step += 1
        self.good_steps += finite
        self.train_loss_sum += torch.where(finite, self.step_loss, 0.0)
        self.step_loss.zero_()
        since = torch.where(self.first_bad > 0, self.first_bad, self.last_step)
        # A scaler of fp16 finds its scale by overflowing now and then.
        forgiving = self.config.train.on_nan == "skip" or self.config.train.precision == "fp16"
        forgiven = torch.zeros_like(since) if forgiving else self.first_bad
        self.first_bad.copy_(torch.where(finite, forgiven, since))

    def configure_optimizers(self) -> Any:
        train = self.config.train
        optimizer = torch.optim.AdamW(
            parameter_groups(self.model, train.weight_decay),
            lr=train.learning_rate,
            betas=train.betas,
            fused=self.fused,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(train, self.start_step + step, self.total_steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class EncoderModule(TrainingModule):
    """Trains a `TransformerClassifier`: logits (B, C) for each row. `class_weights` is (C,) or None.

    A subclass has `training_loss` and the validation, whose states `add_states` makes.
    """

    def __init__(
        self,
        config: RunConfig,
        vocab_size: int,
        num_classes: int,
        class_weights: Tensor | None,
        total_steps: int,
        start_step: int = 0,
        world_size: int = 1,
        num_segments: int = 0,
    ) -> None:
        length = config.tokenizer.max_length
        model = TransformerClassifier(config.model, vocab_size, num_classes, length, num_segments)
        super().__init__(config, model, total_steps, start_step, world_size)
        self.num_classes = num_classes
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.add_states()

    def add_states(self) -> None:
        """Makes what a validation sums up."""
        raise NotImplementedError

    def training_loss(self, logits_BC: Tensor, labels: Tensor) -> Tensor:
        """The training loss of logits against a batch's labels, summed over the rows."""
        raise NotImplementedError

    def summed_loss(self, batch: Any, shift_BTD: Tensor | None = None) -> Tensor:
        """The training loss, summed over the rows; `shift_BTD` moves the tokens' vectors."""
        return self.training_loss(self.logits(batch, shift_BTD), batch["labels"])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if not self.config.train.adversarial:
            return super().training_step(batch, batch_idx)
        ids = batch["input_ids"]
        nothing_BTD = torch.zeros(*ids.shape, self.config.model.hidden_size, device=ids.device, requires_grad=True)
        loss = self.summed_loss(batch, nothing_BTD)
        (slope_BTD,) = torch.autograd.grad(loss, nothing_BTD, retain_graph=True)
        length_B11 = torch.linalg.vector_norm(slope_BTD, dim=(1, 2), keepdim=True)
        shift_BTD = self.config.train.adversarial * slope_BTD / length_B11.clamp(min=1e-30)
        return self.scaled((loss + self.summed_loss(batch, shift_BTD)) / 2, loss, batch)

    def begin_with(self, vectors_VD: Tensor, frozen_V: Tensor | None) -> None:
        """Takes pre-trained vectors; those that are frozen are not trained."""
        assert isinstance(self.model, TransformerClassifier)
        self.model.begin_with(vectors_VD, frozen_V)

    def logits(self, batch: Any, shift_WTD: Tensor | None = None) -> Tensor:
        """Of the rows of a batch, (B, C), each averaged over its windows."""
        logits_WC = self.network(batch["input_ids"], batch["mask"], shift_WTD, batch["segments"])
        return by_row(logits_WC, batch["windows"], len(batch["labels"]))


class ClassifierModule(EncoderModule):
    """Trains for `task: classify`: one class a row."""

    def add_states(self) -> None:
        self.accuracy = MulticlassAccuracy(self.num_classes, average="micro")
        self.f1_macro = MulticlassF1Score(self.num_classes, average="macro")
        self.loss_sum: Tensor
        self.row_count: Tensor
        for name in ("loss_sum", "row_count"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64), persistent=False)

    def training_loss(self, logits_BC: Tensor, labels: Tensor) -> Tensor:
        weights: Any = self.class_weights
        if self.config.train.focal_gamma:
            return focal_loss(logits_BC, labels, weights, self.config.train.focal_gamma)
        smoothing = self.config.train.label_smoothing
        return F.cross_entropy(logits_BC, labels, weights, reduction="sum", label_smoothing=smoothing)

    def on_validation_epoch_start(self) -> None:
        self.loss_sum.zero_()
        self.row_count.zero_()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits_BC = self.logits(batch)
        self.loss_sum += F.cross_entropy(logits_BC, batch["labels"], reduction="sum").double()
        self.row_count += len(batch["labels"])
        self.accuracy.update(logits_BC, batch["labels"])
        self.f1_macro.update(logits_BC, batch["labels"])

    def on_validation_epoch_end(self) -> None:
        # States are summed over ranks once; a mean of each rank's means would weigh rows unevenly.
        loss_sum = self.trainer.strategy.reduce(self.loss_sum, reduce_op="sum")
        row_count = self.trainer.strategy.reduce(self.row_count, reduce_op="sum")
        self.valid_metrics = {
            "valid_loss": float(loss_sum / row_count),
            "valid_accuracy": float(self.accuracy.compute()),
            "valid_f1_macro": float(self.f1_macro.compute()),
            "valid_rows": int(row_count),
        }
        self.accuracy.reset()
        self.f1_macro.reset()

"""The LightningModules: loss, validation metrics, optimizer and learning-rate schedule.

Each stands alone: subclass one and fit it with a plain `pl.Trainer` and a `ShardsDataModule`. A run of txclf uses the
same classes. Shapes: B rows, W their sequences, T tokens, D size of a token vector, C classes.
"""

from __future__ import annotations

from typing import Any, Self

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from txclf.config.run_config import RunConfig
from txclf.core.errors import ConfigError
from txclf.data import word_vectors
from txclf.metrics import calibration
from txclf.metrics.macro_f1 import MacroF1
from txclf.model import pooled_vectors
from txclf.model.classifier import TransformerClassifier, by_row
from txclf.model.pretrained import PretrainedClassifier
from txclf.training import sharded_tensors
from txclf.training.class_weights import label_weights
from txclf.training.data_module import ShardsDataModule
from txclf.training.losses import distillation_loss, focal_loss
from txclf.training.lr_schedule import schedule_learning_rate
from txclf.training.optim import parameter_groups


class TrainingModule(pl.LightningModule):
    """Base of the modules: trains a model so that a step means the same on any number of ranks.

    The loss of a part of a batch is its sum divided by the `step_size` of the *global* batch (its rows, or target
    tokens), times what Lightning and DDP divide by afterwards. So uneven parts weigh right, and the gradient is that of
    the mean over the global batch.

    `total_steps` is the length of the learning-rate schedule; None = that of the trainer. `start_step` is the step from
    which a resumed run continues. A subclass has `summed_loss`, `reset_scores`, `update_scores` and `compute_scores`.
    """

    def __init__(
        self, config: RunConfig, model: nn.Module, *, total_steps: int | None = None, start_step: int = 0
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
        self.gradient_divisor = config.train.micro_batches
        """Factor by which Lightning and DDP divide the gradient of a part."""
        self.logs_steps = False
        """True while Lightning logs `train_loss` of each step; a run of txclf has a log of its own."""
        # Sums stay on the device, because reading one would wait for it. Those of training are this rank's share.
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
        """Metrics of the last validation, in full precision, with the number of rows as `valid_rows`."""

    def summed_loss(self, batch: Any) -> Tensor:
        """Return the training loss, summed over what `step_size` counts."""
        raise NotImplementedError

    def reset_scores(self) -> None:
        """Forget the rows scored so far."""
        raise NotImplementedError

    def update_scores(self, batch: Any) -> None:
        """Score the rows of a batch."""
        raise NotImplementedError

    def compute_scores(self) -> dict[str, float]:
        """Return the metrics of all rows scored on all ranks: `loss`, `rows` and those of the task."""
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a part of a batch, scaled for Lightning and DDP."""
        loss = self.summed_loss(batch)
        return self.scale_loss(loss, loss, batch)

    def scale_loss(self, loss: Tensor, shown: Tensor, batch: Any) -> Tensor:
        """Return a summed loss scaled for Lightning and DDP; `shown` is the loss to log, summed too."""
        share = shown.detach().double() / batch["step_size"]
        self.step_loss += share
        if self.logs_steps:
            # In proportion: the mean over the ranks and micro-batches is the loss of the step.
            logged = share * self.gradient_divisor
            self.log("train_loss", logged, prog_bar=True, batch_size=len(batch["input_ids"]))
        scale: float = self.gradient_divisor / batch["step_size"]
        return loss * scale

    def on_fit_start(self) -> None:
        """Take the number of ranks, and check that the trainer accumulates whole steps."""
        trainer, parts = self.trainer, self.config.train.micro_batches
        if trainer.accumulate_grad_batches % parts:
            raise ConfigError(
                f"`train.micro_batches` ({parts}) does not divide `accumulate_grad_batches` of the trainer "
                f"({trainer.accumulate_grad_batches}). Pass `pl.Trainer(accumulate_grad_batches={parts})`."
            )
        self.gradient_divisor = trainer.world_size * parts
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.logs_steps = not isinstance(data, ShardsDataModule) or data.state is None

    def on_validation_start(self) -> None:
        """Gather sharded weights, because ranks may run a different number of batches."""
        sharded_tensors.gather(self.model)

    def on_validation_epoch_start(self) -> None:
        """Reset the scores."""
        self.reset_scores()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Score a batch of validation rows."""
        self.update_scores(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics as `valid_loss` and so on."""
        self.valid_metrics = {f"valid_{name}": value for name, value in self.compute_scores().items()}
        self._log_metrics(self.valid_metrics)
        sharded_tensors.release(self.model)

    def on_test_start(self) -> None:
        """Gather sharded weights."""
        sharded_tensors.gather(self.model)

    def on_test_epoch_start(self) -> None:
        """Reset the scores."""
        self.reset_scores()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Score a batch of test rows."""
        self.update_scores(batch)

    def on_test_epoch_end(self) -> None:
        """Log the metrics as `test_loss` and so on."""
        self._log_metrics({f"test_{name}": value for name, value in self.compute_scores().items()})
        sharded_tensors.release(self.model)

    def _log_metrics(self, metrics: dict[str, float]) -> None:
        """Log metrics that are the same on every rank."""
        self.log_dict({name: float(value) for name, value in metrics.items()}, rank_zero_only=False, sync_dist=False)

    def reduce_sum(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks. All ranks call it together."""
        total: Tensor = self.trainer.strategy.reduce(value, reduce_op="sum")
        return total

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Scale the step's gradient down to `train.max_grad_norm`; skip the step if it is not finite.

        All ranks hold the same gradient here, so they decide alike without an exchange. The fused optimizer skips the
        step on the device, as for a gradient scaler; with fp16 the scaler itself does.
        """
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        norm = sharded_tensors.whole(nn.utils.get_total_norm(gradients)).to(self.device)
        finite = torch.isfinite(norm)
        max_norm = self.config.train.max_grad_norm
        if self.fused:
            fused: Any = self.optimizers(use_pl_optimizer=False)
            fused.found_inf = (~finite).float()
            if max_norm:  # divided by as the weights are updated, which saves a pass over all gradients
                fused.grad_scale = (norm / max_norm).clamp(min=1.0)
        elif max_norm:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), max_norm, norm)
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
        """Return AdamW (arXiv:1711.05101) and the learning-rate schedule of the run file."""
        train = self.config.train
        optimizer = torch.optim.AdamW(
            parameter_groups(self.model, train),
            lr=train.learning_rate,
            betas=train.betas,
            fused=self.fused,
        )
        total_steps = self.total_steps
        if total_steps is None:
            total_steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = schedule_learning_rate(optimizer, train, self.start_step, total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class EncoderModule(TrainingModule):
    """Base of the classifiers: trains a `TransformerClassifier` or `PretrainedClassifier`, which gives logits (B, C).

    A subclass has `training_loss` and the scores, whose states `add_states` makes.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        vocab_size: int,
        num_classes: int,
        class_weights: Tensor | None = None,
        num_segments: int = 0,
        model: PretrainedClassifier | None = None,
        total_steps: int | None = None,
        start_step: int = 0,
    ) -> None:
        """`class_weights` is (C,) or None. Without `model`, a model from scratch is made."""
        model = model or TransformerClassifier(  # type: ignore[assignment]
            config.model, vocab_size, num_classes, config.tokenizer.max_length, num_segments
        )
        assert model is not None
        super().__init__(config, model, total_steps=total_steps, start_step=start_step)
        self.num_classes = num_classes
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.add_states()

    @classmethod
    def from_data(
        cls,
        data: ShardsDataModule,
        *,
        total_steps: int | None = None,
        start_step: int = 0,
    ) -> Self:
        """Return a new module for prepared data, with the class weights and word vectors of the run file."""
        run, manifest = data.run, data.manifest
        module = cls(
            run,
            vocab_size=manifest.vocab_size,
            num_classes=len(manifest.labels),
            class_weights=label_weights(run, manifest.splits["train"]),
            # Data prepared before there were segments do not tell columns apart.
            num_segments=0 if manifest.separator_id is None else run.num_segments,
            model=None if run.model.pretrained is None else data.pretrained_network(),
            total_steps=total_steps,
            start_step=start_step,
        )
        if run.model.word_vectors is not None:
            vectors = data.vectors or word_vectors.matched(run, data.prepared)
            matrix, known = word_vectors.load(data.prepared, vectors.matrix)
            module.initialize_embeddings(matrix, known if run.model.freeze_word_vectors else None)
        return module

    def add_states(self) -> None:
        """Make the states of the scores."""
        raise NotImplementedError

    def training_loss(self, logits_BC: Tensor, labels: Tensor) -> Tensor:
        """Return the training loss of logits against a batch's labels, summed over the rows."""
        raise NotImplementedError

    def summed_loss(self, batch: Any, shift_BTD: Tensor | None = None) -> Tensor:
        """Return the training loss, summed over the rows; `shift_BTD` moves the token vectors."""
        logits_BC, labels = self.logits(batch, shift_BTD), batch["labels"]
        if "teacher_logits" not in batch:
            return self.training_loss(logits_BC, labels)
        distill, labelled_B = self.config.distill, batch["labelled"]
        losses_B = distillation_loss(
            logits_BC,
            batch["teacher_logits"],
            distill.temperature,
            is_multilabel=self.config.task_spec.is_multilabel,
        )
        if labelled_B is None:
            return distill.weight * losses_B.sum() + (1 - distill.weight) * self.training_loss(logits_BC, labels)
        of_labels = self.training_loss(logits_BC[labelled_B], labels[labelled_B])
        shares_B = torch.where(labelled_B, distill.weight, 1.0)
        return (shares_B * losses_B).sum() + (1 - distill.weight) * of_labels

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a part of a batch; with `train.adversarial` half of it is that of shifted rows."""
        if not self.config.train.adversarial:
            return super().training_step(batch, batch_idx)
        ids = batch["input_ids"]
        embedding: Any = self.model.embedding
        zeros_BTD = torch.zeros(*ids.shape, embedding.embedding_dim, device=ids.device, requires_grad=True)
        loss = self.summed_loss(batch, zeros_BTD)
        (slope_BTD,) = torch.autograd.grad(loss, zeros_BTD, retain_graph=True)
        length_B11 = torch.linalg.vector_norm(slope_BTD, dim=(1, 2), keepdim=True)
        shift_BTD = self.config.train.adversarial * slope_BTD / length_B11.clamp(min=1e-30)
        return self.scale_loss((loss + self.summed_loss(batch, shift_BTD)) / 2, loss, batch)

    def initialize_embeddings(self, vectors_VD: Tensor, frozen_V: Tensor | None) -> None:
        """Set the token embeddings to pre-trained vectors; those that are frozen are not trained."""
        assert isinstance(self.model, TransformerClassifier)
        self.model.set_embeddings(vectors_VD, frozen_V)

    def logits(self, batch: Any, shift_WTD: Tensor | None = None) -> Tensor:
        """Return the logits (B, C) of the rows of a batch, each averaged over its windows."""
        if "encoded" in batch:
            assert isinstance(self.model, PretrainedClassifier)
            return pooled_vectors.head_logits(self.model, batch["encoded"])
        logits_WC = self.network(batch["input_ids"], batch["mask"], shift_WTD, batch["segments"])
        return by_row(logits_WC, batch["windows"], len(batch["labels"]))


class ClassifierModule(EncoderModule):
    """Module of `task: classify`: one class per row.

    Metrics: `loss` (cross-entropy without smoothing or weights), `calibrated_loss` (with the best temperature),
    `accuracy`, `f1_macro`, `rows`.
    """

    def add_states(self) -> None:
        """Make the states of the scores."""
        self.accuracy = MulticlassAccuracy(self.num_classes, average="micro")
        self.f1_macro = MacroF1(self.num_classes)
        self.loss_sum: Tensor
        self.row_count: Tensor
        self.tempered: Tensor
        for name, size in (("loss_sum", ()), ("row_count", ()), ("tempered", len(calibration.TEMPERATURES))):
            self.register_buffer(name, torch.zeros(size, dtype=torch.float64), persistent=False)

    def training_loss(self, logits_BC: Tensor, labels: Tensor) -> Tensor:
        """Return cross-entropy or focal loss, weighted by class, summed over the rows."""
        weights: Any = self.class_weights
        if self.config.train.focal_gamma:
            return focal_loss(logits_BC, labels, weights, self.config.train.focal_gamma)
        smoothing = self.config.train.label_smoothing
        if weights is None or not smoothing:
            return F.cross_entropy(logits_BC, labels, weights, reduction="sum", label_smoothing=smoothing)
        # `F.cross_entropy` would multiply the smoothed share of each class by its own weight, not by that of the row.
        losses_B = F.cross_entropy(logits_BC, labels, reduction="none", label_smoothing=smoothing)
        weighted: Tensor = losses_B * weights[labels]
        return weighted.sum()

    def reset_scores(self) -> None:
        """Forget the rows scored so far."""
        self.loss_sum.zero_()
        self.row_count.zero_()
        self.tempered.zero_()
        self.accuracy.reset()
        self.f1_macro.reset()

    def update_scores(self, batch: Any) -> None:
        """Score the rows of a batch."""
        logits_BC = self.logits(batch)
        self.loss_sum += F.cross_entropy(logits_BC, batch["labels"], reduction="sum").double()
        self.row_count += len(batch["labels"])
        self.tempered += calibration.tempered_losses(logits_BC, batch["labels"])
        self.accuracy.update(logits_BC, batch["labels"])
        self.f1_macro.update(logits_BC, batch["labels"])

    def compute_scores(self) -> dict[str, float]:
        """Return the metrics of all rows scored on all ranks."""
        # States are summed over ranks once; a mean of each rank's means would weigh rows unevenly.
        row_count = self.reduce_sum(self.row_count)
        return {
            "loss": float(self.reduce_sum(self.loss_sum) / row_count),
            "calibrated_loss": float(self.reduce_sum(self.tempered).min() / row_count),
            "accuracy": float(self.accuracy.compute()),
            "f1_macro": float(self.f1_macro.compute()),
            "rows": int(row_count),
        }

"""The callbacks of a run, one job each, over one `TrainState`.

Lightning runs them in the order of `worker.run_callbacks`: count the step, average the weights, check the gradient,
log, report, time, save, stop, beat. Lightning sees a run as a row of short epochs, one per interval between
validations, so that a run resumed anywhere reaches the same validations as one that was never stopped. `StepSchedule`
holds the true steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from txclf.artifacts import attempts, trackers
from txclf.artifacts.metric_logger import MetricLogger
from txclf.config.run_config import RunConfig
from txclf.config.train import Train
from txclf.core.errors import TxclfError
from txclf.data.sampler import Ints
from txclf.training.early_stopping import out_of_patience
from txclf.training.ema import EMA
from txclf.training.module import TrainingModule
from txclf.training.progress import Heartbeat, Interrupted, Progress
from txclf.training.timing import Timing
from txclf.training.train_state import TrainState

MAX_SKIPPED = 50
"""Consecutive steps without a finite gradient that end a run even if it may skip them."""
REPORT_INTERVAL_S = 0.3
"""Seconds between two progress reports."""


class StepCounter(pl.Callback):
    """Counts the steps and seeds each of them.

    Dropout of a step follows from (seed, rank, step, micro-batch) alone, so a resumed run has no random state to
    restore.
    """

    def __init__(self, run: RunConfig, state: TrainState) -> None:
        self.seed, self.micro_batches, self.state = run.seed, run.train.micro_batches, state

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        key = [self.seed, trainer.global_rank, self.state.step, batch_idx % self.micro_batches]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        targets = batch.get("target_ids")
        self.state.timing.tokens += batch["num_tokens"]
        self.state.timing.positions += batch["input_ids"].numel() + (0 if targets is None else targets[:, 1:].numel())
        self.state.in_step = (batch_idx + 1) % self.micro_batches != 0
        self.state.step += not self.state.in_step


class EMACallback(pl.Callback):
    """Averages the weights after each step and puts the average into the model for each validation."""

    def __init__(self, state: TrainState, decay: float, weights: Mapping[str, torch.Tensor] | None) -> None:
        self.state, self.decay, self.weights = state, decay, weights
        self.average: EMA | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        self.average, self.weights = EMA(pl_module.model, self.decay, self.weights), None

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        if self.average and not self.state.in_step:
            self.average.add(self.state.step)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.average:
            self.average.swap()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.average:
            self.average.swap()


class GradientGuard(pl.Callback):
    """Ends a run whose gradient or validation loss is not finite, naming the step and its rows."""

    def __init__(self, run: RunConfig, state: TrainState, step_rows: Callable[[int], Ints]) -> None:
        """`step_rows` returns the numbers in the training split of the rows of a step."""
        self.train, self.state, self.step_rows = run.train, state, step_rows

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Reading the result waits for the device: on a GPU only where the log waits anyway.
        if not self.state.in_step and (pl_module.device.type == "cpu" or logs_step(self.train, self.state)):
            self.require_finite(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        loss = pl_module.valid_metrics["valid_loss"]
        if not math.isfinite(loss):
            raise TxclfError(f"the validation loss is {loss} at step {self.state.step}. Lower `train.learning_rate`.")

    def require_finite(self, module: pl.LightningModule) -> None:
        """Raise `TxclfError` naming the step and the batch of a gradient that was not finite."""
        assert isinstance(module, TrainingModule)
        first = int(module.first_bad)
        skips = self.train.on_nan == "skip" or self.train.precision == "fp16"
        if not first or (skips and self.state.step - first + 1 < MAX_SKIPPED):
            return
        rows = self.step_rows(first - 1)
        shown = ", ".join(map(str, rows[:10])) + (" …" if len(rows) > 10 else "")
        after = "the weights are those of the step before"
        if skips:
            after = f"{MAX_SKIPPED} steps in a row"
        elif self.state.step > first:  # on a GPU only the steps of the log are checked
            after = f"found at step {self.state.step}; step {first} changed no weights"
        raise TxclfError(
            f"the gradient is not finite at step {first} (epoch {self.state.schedule.epoch(first):.2f}; {after}). "
            f"Its batch: rows {shown} of the prepared training split. Lower `train.learning_rate` "
            f"({self.train.learning_rate}), set `train.max_grad_norm`, or `train.on_nan: skip`. All checkpoints stay."
        )


class MetricLogging(pl.Callback):
    """Writes `metrics.jsonl`, TensorBoard and the trackers on rank 0, and the history of validations on every rank.

    `unlogged` holds the sums of the steps after the last line of the log, as a checkpoint keeps them.
    """

    def __init__(self, run: RunConfig, state: TrainState, unlogged: Mapping[str, Any]) -> None:
        self.run, self.state, self.unlogged = run, state, unlogged
        self.writer: MetricLogger | None = None  # not `log`: Lightning gives each callback a function of that name
        self.learning_rate = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        pl_module.good_steps.fill_(self.unlogged.get("good_steps", 0))
        if trainer.is_global_zero:
            pl_module.train_loss_sum.fill_(self.unlogged.get("loss_sum", 0.0))
            folder, step = self.run.run_folder, self.state.step
            self.writer = MetricLogger(folder, step, trackers.open_trackers(self.run))
            self.state.attempt = attempts.begin(folder, step, trainer.world_size, self.writer.repeated)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self.learning_rate = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        state = self.state
        if state.in_step or not logs_step(self.run.train, state):
            return
        loss_sum = trainer.strategy.reduce(pl_module.train_loss_sum.clone(), reduce_op="sum")
        good_steps = int(pl_module.good_steps)
        state.skipped += state.step - state.logged_step - good_steps
        state.logged_step = state.step
        state.train_loss = float(loss_sum) / good_steps if good_steps else math.nan
        pl_module.train_loss_sum.zero_()
        pl_module.good_steps.zero_()
        if self.writer:
            loss = state.train_loss if good_steps else None
            entry = {"step": state.step, "epoch": state.epoch, "train_loss": loss, "learning_rate": self.learning_rate}
            self.writer.write(entry | state.timing.pace(state.timing.elapsed, trainer.world_size))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        metrics = dict(pl_module.valid_metrics)
        rows = int(metrics.pop("valid_rows"))
        entry = {"step": self.state.step, "epoch": self.state.epoch, **metrics}
        self.state.history.append(entry)
        if self.writer:
            self.writer.write({**entry, "valid_rows": rows})
            self.writer.sync()

    def sync(self) -> None:
        """Write to storage what was logged so far."""
        if self.writer:
            self.writer.sync()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close("FINISHED")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close("KILLED" if isinstance(exception, Interrupted) else "FAILED")

    def _close(self, status: trackers.Status) -> None:
        if self.writer:
            self.writer.close(status)
            self.writer = None


class ProgressReport(pl.Callback):
    """Reports the progress from rank 0 a few times a second and takes the driver's request to stop."""

    def __init__(self, state: TrainState, report: Callable[[Progress], bool]) -> None:
        self.state, self.report = state, report
        self.progress = Progress("training", state.step, state.schedule.total_steps, state.epoch, notes=state.notes)
        self.reported, self.reported_tokens = 0.0, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.reported = time.time()
        self._report(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.state.in_step and time.time() - self.reported > REPORT_INTERVAL_S:
            self._report(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.progress.stage = "validating"
        self._report(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # After `on_validation_end` of all callbacks, so the checkpoint of a reported validation is committed.
        assert isinstance(pl_module, TrainingModule)
        metrics = {name: value for name, value in pl_module.valid_metrics.items() if name != "valid_rows"}
        self.progress.stage, self.progress.valid = "training", metrics
        self.progress.validations = len(self.state.history)
        self._report(trainer)

    def _report(self, trainer: pl.Trainer) -> None:
        if not trainer.is_global_zero:
            return
        progress, now, tokens = self.progress, time.time(), self.state.timing.tokens
        if new_tokens := (tokens - self.reported_tokens) * trainer.world_size:
            progress.tokens_per_second = new_tokens / max(now - self.reported, 1e-9)
        progress.step, progress.epoch, progress.train_loss = self.state.step, self.state.epoch, self.state.train_loss
        self.state.stop_requested |= self.report(progress)
        self.reported, self.reported_tokens = time.time(), tokens


class StepTimer(pl.Callback):
    """Times steps and validations, without the checkpoints that follow them."""

    def __init__(self, timing: Timing) -> None:
        self.timing = timing

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.timing.first_step = time.time()

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self.timing.start()

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.timing.steps += self.timing.elapsed

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.timing.start()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.timing.validation += self.timing.elapsed


class Stopping(pl.Callback):
    """Ends the run after its last step, when early stopping says so, or when the driver wants a stop."""

    def __init__(self, run: RunConfig, state: TrainState) -> None:
        self.train, self.state = run.train, state

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.state.complete or out_of_patience(self.state.history, self.train):
            trainer.should_stop = True
        elif any_rank(trainer, self.state.stop_requested):
            raise Interrupted


class HeartbeatCallback(pl.Callback):
    """Keeps the heartbeat of this rank up to date."""

    def __init__(self, state: TrainState, heartbeat: Heartbeat) -> None:
        self.state, self.heartbeat = state, heartbeat

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.heartbeat.beat("waiting for data", self.state.step)  # Lightning fetches a batch before `on_train_start`

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self.heartbeat.beat("training", self.state.step)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.heartbeat.waited = self.state.timing.data
        self.heartbeat.beat("waiting for data", self.state.step)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.heartbeat.beat("validating", self.state.step)

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.heartbeat.beat("validating", self.state.step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.heartbeat.beat("waiting for data", self.state.step)


def logs_step(train: Train, state: TrainState) -> bool:
    """Return True if the last step ends with a line in the log."""
    return state.step % train.log_every_steps == 0 or state.at_validation


def any_rank(trainer: pl.Trainer, here: bool) -> bool:
    """Return True if `here` is true on any rank. All ranks call it together."""
    return bool(trainer.strategy.reduce_boolean_decision(here, all=False))

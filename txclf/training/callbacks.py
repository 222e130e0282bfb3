"""What happens between steps: the log, the checkpoints, early stopping, interruption, progress.

Lightning sees a run as a row of short epochs, one per interval between validations, so that a run resumed anywhere
goes on to the same validations as one never stopped. `StepSchedule` holds the run's true steps and epochs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from txclf.artifacts import attempts, checkpoints, trackers
from txclf.artifacts.attempts import Attempt
from txclf.artifacts.metric_logger import Log
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.core.errors import TxclfError
from txclf.data.sampler import BatchSampler
from txclf.training import sharded_tensors
from txclf.training.ema import EMA
from txclf.training.module import TrainingModule
from txclf.training.optim import learning_rate_factor
from txclf.training.progress import Heartbeat, Interrupted, Progress
from txclf.training.step_schedule import StepSchedule, exhausted
from txclf.training.timing import Clock

MOST_SKIPPED = 50
"""Steps in a row without a finite gradient after which a run ends although it may skip them."""

SHOWN_EVERY_S = 0.3
"""Seconds between two looks of the driver at the progress."""


class Recorder(pl.Callback):
    """Writes `metrics.jsonl` and TensorBoard, saves checkpoints, stops early, answers interruption.

    `state` is the checkpoint that the run goes on from. `report` gets the progress on rank 0 and says whether the
    driver wants a stop. Only rank 0 writes; all ranks take the same decisions.
    """

    def __init__(
        self,
        run: RunConfig,
        course: StepSchedule,
        plan: BatchSampler,
        state: Mapping[str, Any],
        clock: Clock,
        pulse: Heartbeat,
        report: Callable[[Progress], bool],
    ) -> None:
        self.folder = run.run_folder
        self.checkpoints = storage.join(run.run_folder, "checkpoints")
        self.run, self.train, self.seed = run, run.train, run.seed
        self.course, self.plan, self.clock, self.pulse, self.report = course, plan, clock, pulse, report
        self.state = state
        self.step: int = state["step"]
        self.history: list[dict[str, float]] = state["history"]
        self.average: EMA | None = None
        self.progress = Progress("training", self.step, course.total_steps, course.epoch(self.step))
        self.logged_step = self.step
        self.skipped: int = state.get("skipped", 0)
        self.part_start = self.reported = self.saved = 0.0
        self.reported_tokens = 0
        self.stop_asked = False
        self.writer: Log | None = None
        self.attempt: Attempt | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        self.clock.first_step = self.reported = self.saved = time.time()
        if self.train.ema_decay:
            self.average = EMA(pl_module.model, self.train.ema_decay, self.state.get("average"))
        unlogged = self.state.get("unlogged", {"step": self.step, "good_steps": 0, "loss_sum": 0.0})
        self.logged_step = unlogged["step"]
        pl_module.good_steps.fill_(unlogged["good_steps"])
        if trainer.is_global_zero:
            pl_module.train_loss_sum.fill_(unlogged["loss_sum"])
            self.writer = Log(self.folder, self.step, trackers.opened(self.run))
            self.attempt = attempts.begin(self.folder, self.step, trainer.world_size, self.writer.repeated)
            self._tell(trainer, now=True)
        self.pulse.beat("training", self.step)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Dropout of a step depends on nothing but this: so a resumed run has no random state to restore.
        part = batch_idx % self.train.micro_batches
        state = np.random.SeedSequence([self.seed, trainer.global_rank, self.step, part]).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0]) >> 1)
        self.part_start = time.perf_counter()
        self.pulse.beat("training", self.step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        self.clock.tokens += batch["num_tokens"]
        whole = (batch_idx + 1) % self.train.micro_batches == 0
        if whole:
            self.step += 1
            if self.average:
                self.average.add(self.step)
            logs = self.step % self.train.log_every_steps == 0 or self._validates()
            if logs or pl_module.device.type == "cpu":
                self._require_finite(pl_module)
            if logs:
                self._log_training(trainer, pl_module)
            self._tell(trainer)
        self.clock.steps += time.perf_counter() - self.part_start
        # Where a validation follows it must come first: a checkpoint of this step would skip it on resume.
        if whole and not self._validates():
            self._save_if_due(trainer, pl_module)
        self.pulse.beat("waiting for data", self.step)

    def _save_if_due(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """Saves where the steps say so, or where rank 0 finds that its time has come or that a stop is wanted."""
        due = bool(self.course.checkpoint_steps) and self.step % self.course.checkpoint_steps == 0
        stops = False
        # Several ranks ask each other every few steps only, to save the exchange.
        if trainer.world_size == 1 or self.step % 10 == 0:
            asked = self.stop_asked or time.time() - self.saved > self.course.checkpoint_seconds
            if self._any_rank(trainer, trainer.is_global_zero and asked):
                due, stops = True, self._any_rank(trainer, self.stop_asked)
        if due:
            self._save(trainer, module, {})
        if stops:
            raise Interrupted

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        if self.average:
            self.average.swap()
        sharded_tensors.gather(pl_module.model)
        self.part_start = time.perf_counter()
        self.progress.stage = "validating"
        self._tell(trainer, now=True)
        self.pulse.beat("validating", self.step)

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.pulse.beat("validating", self.step)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        sharded_tensors.release(pl_module.model)
        if self.average:
            self.average.swap()
        metrics = dict(pl_module.valid_metrics)
        rows = int(metrics.pop("valid_rows"))
        if not math.isfinite(metrics["valid_loss"]):
            loss = metrics["valid_loss"]
            raise TxclfError(f"the validation loss is {loss} at step {self.step}: lower `train.learning_rate`")
        entry = {"step": self.step, "epoch": self.course.epoch(self.step), **metrics}
        self.history.append(entry)
        self.clock.validation += time.perf_counter() - self.part_start
        if self.writer:
            self.writer.write({**entry, "valid_rows": rows})
            self.writer.sync()
        self._save(trainer, pl_module, metrics)
        self.progress.stage, self.progress.valid, self.progress.validations = "training", metrics, len(self.history)
        self._tell(trainer, now=True)
        if self.step == self.course.total_steps or exhausted(self.history, self.train):
            trainer.should_stop = True
        elif self._any_rank(trainer, self.stop_asked):
            raise Interrupted
        self.pulse.beat("waiting for data", self.step)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close("FINISHED")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close("KILLED" if isinstance(exception, Interrupted) else "FAILED")

    def _close(self, status: trackers.Status) -> None:
        if self.writer:
            self.writer.close(status)
            self.writer = None

    def _validates(self) -> bool:
        return self.step == self.course.next_validation(self.step - 1)

    def _log_training(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, TrainingModule)
        loss_sum = trainer.strategy.reduce(module.train_loss_sum.clone(), reduce_op="sum")
        good_steps = int(module.good_steps)
        self.skipped += self.step - self.logged_step - good_steps
        loss = float(loss_sum) / good_steps if good_steps else math.nan
        module.train_loss_sum.zero_()
        module.good_steps.zero_()
        self.logged_step = self.step
        self.progress.train_loss = loss
        if self.writer:
            factor = learning_rate_factor(self.train, self.step - 1, self.course.total_steps)
            rate = self.train.learning_rate * factor
            epoch = self.course.epoch(self.step)
            known = loss if good_steps else None
            pace = self.clock.pace(time.perf_counter() - self.part_start, trainer.world_size)
            self.writer.write({"step": self.step, "epoch": epoch, "train_loss": known, "learning_rate": rate, **pace})

    def _require_finite(self, module: TrainingModule) -> None:
        """Raises `TxclfError` naming the step and the batch of a gradient that was not finite; waits for the device."""
        first = int(module.first_bad)
        skips = self.train.on_nan == "skip" or self.train.precision == "fp16"
        if not first or (skips and self.step - first + 1 < MOST_SKIPPED):
            return
        rows = self.plan.rows(first - 1)
        shown = ", ".join(map(str, rows[:10])) + (" …" if len(rows) > 10 else "")
        row = f"{MOST_SKIPPED} steps in a row" if skips else "the weights are those of the step before"
        raise TxclfError(
            f"the gradient is not finite at step {first} (epoch {self.course.epoch(first):.2f}; {row}). "
            f"Its batch: rows {shown} of the prepared training split. Lower `train.learning_rate` "
            f"({self.train.learning_rate}), set `train.max_grad_norm`, or `train.on_nan: skip`. All checkpoints stay."
        )

    def _tell(self, trainer: pl.Trainer, now: bool = False) -> None:
        """Shows the progress a few times a second."""
        seconds = time.time() - self.reported
        if trainer.is_global_zero and (now or seconds > SHOWN_EVERY_S):
            tokens = (self.clock.tokens - self.reported_tokens) * trainer.world_size
            if tokens:
                self.progress.tokens_per_second = tokens / max(seconds, 1e-9)
            self.progress.step, self.progress.epoch = self.step, self.course.epoch(self.step)
            self.stop_asked = self.report(self.progress)
            self.reported, self.reported_tokens = time.time(), self.clock.tokens

    def _any_rank(self, trainer: pl.Trainer, here: bool) -> bool:
        return bool(trainer.strategy.reduce_boolean_decision(here, all=False))

    def _save(self, trainer: pl.Trainer, module: pl.LightningModule, metrics: dict[str, float]) -> None:
        assert isinstance(module, TrainingModule)
        start = time.perf_counter()
        self.pulse.beat("saving a checkpoint", self.step)
        self._require_finite(module)
        loss_sum = trainer.strategy.reduce(module.train_loss_sum.clone(), reduce_op="sum")
        state = {
            "step": self.step,
            "model": sharded_tensors.whole(module.model.state_dict()),
            "optimizer": sharded_tensors.whole(trainer.optimizers[0].state_dict()),
            "scaler": trainer.precision_plugin.state_dict(),
            "history": self.history,
            "average": sharded_tensors.whole(self.average.state()) if self.average else None,
            "unlogged": {
                "step": self.logged_step,
                "good_steps": int(module.good_steps),
                "loss_sum": float(loss_sum),
            },
            "skipped": self.skipped,
        }
        if trainer.is_global_zero:
            assert self.attempt
            attempts.require_current(self.folder, self.attempt)
            checkpoints.save(self.checkpoints, self.step, metrics, state)
            checkpoints.prune(self.checkpoints, self.train.monitor, self.train.keep_checkpoints)
        trainer.strategy.barrier()
        self.saved = time.time()
        self.clock.checkpoints += time.perf_counter() - start

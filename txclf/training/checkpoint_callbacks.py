"""The callbacks that save checkpoints and restore the optimizer from one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl

from txclf.artifacts import attempts, checkpoints
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.training import sharded_tensors
from txclf.training.callbacks import EMACallback, GradientGuard, MetricLogging, any_rank
from txclf.training.decisions import Decision, DecisionBroadcast
from txclf.training.job import DistributedContext
from txclf.training.module import TrainingModule
from txclf.training.optim import restore_optimizer
from txclf.training.progress import Interrupted
from txclf.training.train_state import TrainState

PAUSE_S = 30.0
"""Seconds that paused workers wait to be ended before they continue."""
PREEMPTION_MARGIN_S = 5.0
"""Seconds from the last checkpoint to the end of a node, in addition to the time of three steps and checkpoints."""


class CheckpointSaver(pl.Callback):
    """Saves a checkpoint after each validation, when one is due, and when the driver or Ray asks for one."""

    def __init__(
        self,
        run: RunConfig,
        state: TrainState,
        guard: GradientGuard,
        average: EMACallback | None,
        log: MetricLogging,
        *,
        context: DistributedContext,
    ) -> None:
        self.train, self.folder = run.train, run.run_folder
        self.state, self.guard, self.average, self.metrics = state, guard, average, log
        self.heartbeat, self.requests = context.heartbeat, context.requests
        self.decisions: DecisionBroadcast | None = None
        self.saved, self.decided, self.saving = 0.0, 0.0, 0.0
        self.noticed: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.decisions = DecisionBroadcast(self.decide, trainer.world_size, 2 * self.train.stall_timeout_s + 1)
        self.saved = self.decided = time.time()
        step = self.state.step
        if any_rank(trainer, trainer.strategy.broadcast(step) != step):
            raise RuntimeError("the ranks resumed from different checkpoints")  # one could not read the last: restart
        if trainer.is_global_zero:
            checkpoints.remove_after(storage.join(self.folder, "checkpoints"), step)  # damaged ones

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        state, schedule = self.state, self.state.schedule
        # A validation must come before the checkpoint of its step, or a resumed run would skip it.
        if state.in_step or state.at_validation:
            return
        assert self.decisions is not None
        decision = self.decisions.receive()
        due = bool(schedule.checkpoint_steps) and state.step % schedule.checkpoint_steps == 0
        if due or decision:
            self.save(trainer, pl_module, {})
        if decision & Decision.STOP:
            raise Interrupted
        if decision & Decision.PAUSE:
            self.pause()
        self.decisions.send()

    def decide(self) -> Decision:
        """Return the decision of this rank; that of rank 0 counts."""
        now = time.time()
        step_seconds, self.decided = now - self.decided, now
        if self.state.stop_requested:
            return Decision.SAVE | Decision.STOP
        at = self.requests.preempted_at
        if at is not None and at != self.noticed:
            self.noticed = at
            return Decision.SAVE
        # The decision of now is carried out after the next step, and that checkpoint must be complete in time.
        leaving = at is not None and now > at - PREEMPTION_MARGIN_S - 3 * (self.saving + step_seconds)
        if (self.requests.pause or leaving) and not self.heartbeat.paused:
            return Decision.SAVE | Decision.PAUSE
        timed = now - self.saved > self.state.schedule.checkpoint_seconds
        return Decision.SAVE if timed else Decision.CONTINUE

    def pause(self) -> None:
        """Wait for Ray Train to end the workers, so that they train no step that the next workers would repeat."""
        self.heartbeat.paused = True
        until = time.monotonic() + PAUSE_S
        while time.monotonic() < until:
            self.heartbeat.beat("waiting for a restart", self.state.step)
            time.sleep(0.1)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        metrics = {name: value for name, value in pl_module.valid_metrics.items() if name != "valid_rows"}
        self.save(trainer, pl_module, metrics)
        assert self.decisions is not None
        self.decisions.receive()  # answered by this checkpoint; `Stopping` ends the run where that is due

    def save(self, trainer: pl.Trainer, module: pl.LightningModule, metrics: dict[str, float]) -> None:
        """Commit a checkpoint of this step and remove those that are no longer needed. All ranks call it together."""
        assert isinstance(module, TrainingModule)
        state, whole, start = self.state, sharded_tensors.whole, time.perf_counter()
        self.heartbeat.beat("saving a checkpoint", state.step)
        self.guard.require_finite(module)
        loss_sum = trainer.strategy.reduce(module.train_loss_sum.clone(), reduce_op="sum")
        average, keep = self.average.average if self.average else None, trainer.is_global_zero
        content = {
            "step": state.step,
            "model": whole(module.model.state_dict(), keep),
            "optimizer": whole(trainer.optimizers[0].state_dict(), keep),
            "scaler": trainer.precision_plugin.state_dict(),
            "history": state.history,
            "average": whole(average.state(), keep) if average else None,
            "unlogged": {
                "step": state.logged_step,
                "good_steps": int(module.good_steps),
                "loss_sum": float(loss_sum),
            },
            "skipped": state.skipped,
        }
        if trainer.is_global_zero:
            assert state.attempt
            attempts.require_current(self.folder, state.attempt)
            self.metrics.sync()  # before the mark: a resumed run keeps the lines up to its checkpoint
            folder = storage.join(self.folder, "checkpoints")
            checkpoints.save(folder, state.step, metrics, content)
            checkpoints.prune(folder, self.train.monitor, self.train.keep_checkpoints)
        trainer.strategy.barrier()
        self.saved, self.saving = time.time(), time.perf_counter() - start
        state.timing.checkpoints += self.saving


class OptimizerRestore(pl.Callback):
    """Restores the optimizer and the gradient scaler of a checkpoint."""

    def __init__(self, checkpoint: Mapping[str, Any]) -> None:
        self.states = [checkpoint["optimizer"], checkpoint["scaler"]]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        optimizer, scaler = self.states
        restore_optimizer(trainer.optimizers[0], optimizer)
        trainer.precision_plugin.load_state_dict(scaler)
        self.states.clear()  # the memory that the training needs

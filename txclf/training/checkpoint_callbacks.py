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
from txclf.training.callbacks import EMACallback, GradientGuard, any_rank
from txclf.training.decisions import Decision, DecisionBroadcast
from txclf.training.module import TrainingModule
from txclf.training.optim import restore_optimizer
from txclf.training.progress import Heartbeat, Interrupted
from txclf.training.train_state import TrainState


class CheckpointSaver(pl.Callback):
    """Saves a checkpoint after each validation, when one is due, and when the driver wants a stop."""

    def __init__(
        self, run: RunConfig, state: TrainState, guard: GradientGuard, average: EMACallback | None, heartbeat: Heartbeat
    ) -> None:
        self.train, self.folder = run.train, run.run_folder
        self.state, self.guard, self.average, self.heartbeat = state, guard, average, heartbeat
        self.decisions: DecisionBroadcast | None = None
        self.saved = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.decisions = DecisionBroadcast(self.decide, trainer.world_size, 2 * self.train.stall_timeout_s + 1)
        self.saved = time.time()
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
        self.decisions.send()

    def decide(self) -> Decision:
        """Return the decision of this rank; that of rank 0 counts."""
        if self.state.stop_requested:
            return Decision.SAVE | Decision.STOP
        timed = time.time() - self.saved > self.state.schedule.checkpoint_seconds
        return Decision.SAVE if timed else Decision.CONTINUE

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
            folder = storage.join(self.folder, "checkpoints")
            checkpoints.save(folder, state.step, metrics, content)
            checkpoints.prune(folder, self.train.monitor, self.train.keep_checkpoints)
        trainer.strategy.barrier()
        self.saved = time.time()
        state.timing.checkpoints += time.perf_counter() - start


class OptimizerRestore(pl.Callback):
    """Restores the optimizer and the gradient scaler of a checkpoint."""

    def __init__(self, checkpoint: Mapping[str, Any]) -> None:
        self.checkpoint = checkpoint

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        restore_optimizer(trainer.optimizers[0], self.checkpoint["optimizer"])
        trainer.precision_plugin.load_state_dict(self.checkpoint["scaler"])

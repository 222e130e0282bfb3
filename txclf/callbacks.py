"""What happens between steps: the log, the checkpoints, early stopping, interruption, progress.

Lightning sees a run as a row of short epochs, one per interval between validations, so that a run resumed anywhere
goes on to the same validations as one never stopped. `Course` holds the run's true steps and epochs.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn

from txclf import checkpoints, storage
from txclf.config import Train
from txclf.errors import TxclfError
from txclf.module import ClassifierModule, learning_rate_factor


class Interrupted(Exception):
    """Training was asked to stop, and its checkpoint is saved."""


@dataclass(frozen=True)
class Course:
    """The steps of a run, known before the first one on every rank."""

    steps_per_epoch: int
    epochs: int
    eval_every: float

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    def epoch(self, step: int) -> float:
        """Epochs done after a step."""
        return step / self.steps_per_epoch

    def next_validation(self, step: int) -> int:
        """The first validation after `step` steps; each epoch ends in one."""
        epoch, done = divmod(step, self.steps_per_epoch)
        intervals = round(1 / self.eval_every)
        for part in range(1, intervals + 1):
            point = math.ceil(part * self.steps_per_epoch / intervals)
            if point > done:
                return epoch * self.steps_per_epoch + point
        raise AssertionError("an epoch ends in a validation")


@dataclass
class Progress:
    """What the driver shows while workers train; plain numbers, so that it travels."""

    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    train_loss: float = math.nan
    tokens_per_second: float = 0.0
    valid: dict[str, float] = field(default_factory=dict)


@dataclass
class Clock:
    """Where the seconds of a run went, on this rank."""

    first_step: float = 0.0
    """Wall-clock time of the first step."""
    steps: float = 0.0
    data: float = 0.0
    validation: float = 0.0
    checkpoints: float = 0.0
    tokens: int = 0


def exhausted(history: list[dict[str, float]], train: Train) -> bool:
    """Whether `train.patience` validations brought nothing better."""
    if not history or not train.patience:
        return False
    return len(history) - 1 - checkpoints.best(history, train.monitor) >= train.patience


class Average:
    """An exponential moving average of a model's weights (Polyak and Juditsky, 1992), of about 1 / (1 - decay) steps.

    The first steps count more, by a decay of (1 + step) / (10 + step), or the random start would weigh for long.
    """

    def __init__(self, model: nn.Module, decay: float, state: dict[str, torch.Tensor] | None) -> None:
        self.decay = decay
        self.weights = [parameter.detach().clone() for parameter in model.parameters()]
        self.names = [name for name, _ in model.named_parameters()]
        if state:
            for weight, name in zip(self.weights, self.names, strict=True):
                weight.copy_(state[name])

    def add(self, model: nn.Module, step: int) -> None:
        """Takes the weights after a step, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.weights, [parameter.detach() for parameter in model.parameters()], 1 - decay)

    def swap(self, model: nn.Module) -> None:
        """Puts the average into the model and what was there aside, or back."""
        for mine, parameter in zip(self.weights, model.parameters(), strict=True):
            held = parameter.detach().clone()
            parameter.data.copy_(mine)
            mine.copy_(held)

    def state(self) -> dict[str, torch.Tensor]:
        return dict(zip(self.names, self.weights, strict=True))


class Recorder(pl.Callback):
    """Writes `metrics.jsonl` and TensorBoard, saves checkpoints, stops early, answers interruption.

    `report` gets the progress on rank 0 and says whether the driver wants a stop. `history` holds the validations so
    far. Only rank 0 writes; all ranks take the same decisions.
    """

    def __init__(
        self,
        run_folder: str,
        train: Train,
        seed: int,
        course: Course,
        start_step: int,
        history: list[dict[str, float]],
        clock: Clock,
        report: Callable[[Progress], bool],
        average: dict[str, torch.Tensor] | None = None,
        unlogged: tuple[int, float] = (0, 0.0),
    ) -> None:
        self.average_state = average
        self.average: Average | None = None
        self.run_folder = run_folder
        self.checkpoints = storage.join(run_folder, "checkpoints")
        self.train = train
        self.seed = seed
        self.course = course
        self.step = start_step
        self.history = history
        self.clock = clock
        self.report = report
        self.progress = Progress(start_step, course.total_steps, course.epoch(start_step))
        self.logged_step, self.unlogged_loss = unlogged
        self.part_start = self.reported = 0.0
        self.reported_tokens = 0
        self.stop_asked = False
        self.writer: Log | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, ClassifierModule)
        if self.train.average:
            self.average = Average(pl_module.model, self.train.average, self.average_state)
        if trainer.is_global_zero:
            pl_module.train_loss_sum.fill_(self.unlogged_loss)
            self.writer = Log(self.run_folder, self.step)
        self.clock.first_step = self.reported = time.time()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Dropout of a step depends on nothing but this: so a resumed run has no random state to restore.
        part = batch_idx % self.train.accumulate
        state = np.random.SeedSequence([self.seed, trainer.global_rank, self.step, part]).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0]) >> 1)
        self.part_start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.clock.tokens += batch["num_tokens"]
        if (batch_idx + 1) % self.train.accumulate == 0:
            self.step += 1
            if self.average:
                assert isinstance(pl_module, ClassifierModule)
                self.average.add(pl_module.model, self.step)
            if self.step % self.train.log_every_steps == 0 or self._validates():
                self._log_training(trainer, pl_module)
            self._tell(trainer)
        self.clock.steps += time.perf_counter() - self.part_start
        # Where a validation follows it must come first: a checkpoint of this step would skip it on resume.
        if (batch_idx + 1) % self.train.accumulate == 0 and not self._validates() and self._wants_stop(trainer):
            self._save(trainer, pl_module, {})
            raise Interrupted

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.average:
            assert isinstance(pl_module, ClassifierModule)
            self.average.swap(pl_module.model)
        self.part_start = time.perf_counter()
        self._tell(trainer, now=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, ClassifierModule)
        if self.average:
            self.average.swap(pl_module.model)
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
        self.progress.valid = metrics
        self._tell(trainer, now=True)
        self._save(trainer, pl_module, metrics)
        if self.step == self.course.total_steps or exhausted(self.history, self.train):
            trainer.should_stop = True
        elif self._asks_stop(trainer):
            raise Interrupted

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self.writer:
            self.writer.close()
            self.writer = None

    def _validates(self) -> bool:
        return self.step == self.course.next_validation(self.step - 1)

    def _log_training(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, ClassifierModule)
        loss_sum = trainer.strategy.reduce(module.train_loss_sum.clone(), reduce_op="sum")
        steps = self.step - self.logged_step
        loss = float(loss_sum) / (steps * self.train.batch_size)
        module.train_loss_sum.zero_()
        self.logged_step = self.step
        self.progress.train_loss = loss
        if self.writer:
            factor = learning_rate_factor(self.train, self.step - 1, self.course.total_steps)
            rate = self.train.learning_rate * factor
            epoch = self.course.epoch(self.step)
            self.writer.write({"step": self.step, "epoch": epoch, "train_loss": loss, "learning_rate": rate})
        if not math.isfinite(loss):
            raise TxclfError(
                f"the training loss is {loss} at step {self.step}: lower `train.learning_rate` "
                f"({self.train.learning_rate}) or set `train.clip_norm`; the last good checkpoint is kept"
            )

    def _tell(self, trainer: pl.Trainer, now: bool = False) -> None:
        """Shows the progress a few times a second."""
        seconds = time.time() - self.reported
        if trainer.is_global_zero and (now or seconds > 0.3):
            tokens = (self.clock.tokens - self.reported_tokens) * trainer.world_size
            if tokens:
                self.progress.tokens_per_second = tokens / max(seconds, 1e-9)
            self.progress.step, self.progress.epoch = self.step, self.course.epoch(self.step)
            self.stop_asked = self.report(self.progress)
            self.reported, self.reported_tokens = time.time(), self.clock.tokens

    def _wants_stop(self, trainer: pl.Trainer) -> bool:
        """Whether all ranks stop here; several ranks agree on it every few steps, to save the exchange."""
        return (trainer.world_size == 1 or self.step % 10 == 0) and self._asks_stop(trainer)

    def _asks_stop(self, trainer: pl.Trainer) -> bool:
        return bool(trainer.strategy.reduce_boolean_decision(self.stop_asked, all=False))

    def _save(self, trainer: pl.Trainer, module: pl.LightningModule, metrics: dict[str, float]) -> None:
        assert isinstance(module, ClassifierModule)
        start = time.perf_counter()
        loss_sum = trainer.strategy.reduce(module.train_loss_sum.clone(), reduce_op="sum")
        if trainer.is_global_zero:
            state = {
                "step": self.step,
                "model": module.model.state_dict(),
                "optimizer": trainer.optimizers[0].state_dict(),
                "scaler": trainer.precision_plugin.state_dict(),
                "history": self.history,
                "average": self.average.state() if self.average else None,
                "unlogged": (self.logged_step, float(loss_sum)),
            }
            checkpoints.save(self.checkpoints, self.step, metrics, state)
            checkpoints.prune(self.checkpoints, self.train.monitor, self.train.keep_checkpoints)
        trainer.strategy.barrier()
        self.clock.checkpoints += time.perf_counter() - start


class Log:
    """`metrics.jsonl` and TensorBoard event files of a run folder, continued after `step`.

    On an object store, which cannot append, both are written whole at each `sync`.
    """

    def __init__(self, run_folder: str, step: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter  # imports slowly

        self.path = storage.join(run_folder, "metrics.jsonl")
        self.events = storage.join(run_folder, "tensorboard")
        self.local = storage.is_local(run_folder)
        lines = storage.read_bytes(self.path).decode().splitlines() if storage.exists(self.path) else []
        # Lines after the checkpoint that the run goes on from would stand twice.
        self.lines = [line for line in lines if json.loads(line)["step"] <= step]
        storage.write_bytes(self.path, "".join(line + "\n" for line in self.lines).encode())
        self.file = open(storage.local_path(self.path), "a") if self.local else None  # noqa: SIM115
        self.temporary = None if self.local else tempfile.mkdtemp(prefix="txclf-tensorboard-")
        self.writer = SummaryWriter(
            str(storage.local_path(self.events) if self.temporary is None else self.temporary), purge_step=step + 1
        )

    def write(self, entry: dict[str, float]) -> None:
        line = json.dumps(entry)
        if self.file:
            self.file.write(line + "\n")
            self.file.flush()
        else:
            self.lines.append(line)
        for name, value in entry.items():
            if name not in ("step", "valid_rows"):
                self.writer.add_scalar(name, value, int(entry["step"]))

    def sync(self) -> None:
        self.writer.flush()
        if self.temporary is not None:
            storage.write_bytes(self.path, "".join(line + "\n" for line in self.lines).encode())
            storage.copy_folder(self.temporary, self.events)

    def close(self) -> None:
        self.sync()
        self.writer.close()
        if self.file:
            self.file.close()

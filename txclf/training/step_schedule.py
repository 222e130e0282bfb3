"""The steps of a run and where validations and checkpoints fall among them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from txclf.artifacts import checkpoints
from txclf.config.train import Train


@dataclass(frozen=True)
class StepSchedule:
    """The steps of a run, known before the first one on every rank."""

    steps_per_epoch: int
    epochs: int
    eval_every: float
    checkpoint_every: int | float | str

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

    @property
    def checkpoint_steps(self) -> int:
        """Steps between checkpoints; 0 where time decides."""
        every = self.checkpoint_every
        if isinstance(every, str):
            return 0
        return every if isinstance(every, int) else max(1, round(every * self.steps_per_epoch))

    @property
    def checkpoint_seconds(self) -> float:
        """Seconds between checkpoints; infinite where steps decide."""
        every = self.checkpoint_every
        if isinstance(every, str):
            return float(every[:-1]) * {"s": 1.0, "m": 60.0, "h": 3600.0}[every[-1]]
        return math.inf


def exhausted(history: list[dict[str, float]], train: Train) -> bool:
    """Whether `train.early_stopping_patience` validations brought nothing better."""
    if not history or not train.early_stopping_patience or train.train_on_valid:
        return False
    return len(history) - 1 - checkpoints.best(history, train.monitor) >= train.early_stopping_patience

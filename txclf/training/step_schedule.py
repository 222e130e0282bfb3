"""The steps of a run: where epochs end and where validations and checkpoints fall among them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from txclf.config.base import seconds_of


@dataclass(frozen=True)
class StepSchedule:
    """The steps of a run, known before the first one on every rank."""

    steps_per_epoch: int
    epochs: int
    eval_every: float
    """Epochs between validations; below 1 the share of an epoch."""
    checkpoint_every: int | float | str
    """Steps, share of an epoch, or time such as `10m`."""

    @property
    def total_steps(self) -> int:
        """Steps of all epochs."""
        return self.steps_per_epoch * self.epochs

    def epoch(self, step: int) -> float:
        """Return the epochs done after a step."""
        return step / self.steps_per_epoch

    def next_validation(self, step: int) -> int:
        """Return the first validation after `step` steps; the last epoch ends in one."""
        if self.eval_every > 1:
            steps = round(self.eval_every) * self.steps_per_epoch
            return min((step // steps + 1) * steps, self.total_steps)
        epoch, done = divmod(step, self.steps_per_epoch)
        intervals = round(1 / self.eval_every)
        for part in range(1, intervals + 1):
            point = math.ceil(part * self.steps_per_epoch / intervals)
            if point > done:
                return epoch * self.steps_per_epoch + point
        raise AssertionError("an epoch ends in a validation")

    @property
    def checkpoint_steps(self) -> int:
        """Steps between checkpoints; 0 if time decides."""
        every = self.checkpoint_every
        if isinstance(every, str):
            return 0
        return every if isinstance(every, int) else max(1, round(every * self.steps_per_epoch))

    @property
    def checkpoint_seconds(self) -> float:
        """Seconds between checkpoints; infinite if steps decide."""
        every = self.checkpoint_every
        if isinstance(every, str):
            return seconds_of(every)
        return math.inf

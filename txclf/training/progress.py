"""Messages between the processes of a run. Imports nothing heavy: Ray's own actors hold these too."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal


class Interrupted(Exception):
    """Training was asked to stop, and its checkpoint is saved."""


@dataclass
class Progress:
    """Progress of a run as the driver shows it; plain numbers, so that it travels."""

    stage: Literal["preparing", "training", "validating", "bundling"] = "training"
    """`preparing` while a network reads the rows once: `step` and `total_steps` count rows then. `bundling` after the
    last step, while a checkpoint is chosen and the linear model on n-grams is fitted; a run does not stop then."""
    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    """Epochs done."""
    train_loss: float = math.nan
    """Mean loss of the steps of the last line of the log."""
    tokens_per_second: float = 0.0
    """Real tokens per second, over all workers."""
    valid: dict[str, float] = field(default_factory=dict)
    """Metrics of the last validation."""
    validations: int = 0
    """Number of validations, those before a resume included."""
    notes: list[str] = field(default_factory=list)
    """Messages about the data and the workers so far."""
    preempted_at: float | None = None
    """Wall-clock time at which a node of the workers is taken away."""


@dataclass
class Heartbeat:
    """Heartbeat of one rank. `beats` increases each time the rank makes progress."""

    activity: str = "starting"
    step: int = 0
    beats: int = 0
    waited: float = 0.0
    """Seconds spent waiting for training batches."""
    gpu_bytes: int = 0
    """Maximum GPU memory held."""
    paused: bool = False
    """True after the rank saved a checkpoint and stopped training, because Ray restarts the workers."""

    def beat(self, activity: str, step: int) -> None:
        """Record progress: what the rank does now, and at which step."""
        self.activity, self.step, self.beats = activity, step, self.beats + 1


@dataclass
class Requests:
    """Requests to rank 0 from outside of the workers. A thread updates them between steps."""

    stop: bool = False
    """True if the driver asked for a stop."""
    pause: bool = False
    """True if the number of workers is about to change."""
    preempted_at: float | None = None
    """Wall-clock time at which a node of the workers is taken away; infinite if unknown, None without a notice."""

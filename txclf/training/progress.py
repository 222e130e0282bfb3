"""What the processes of a run tell each other. Imports nothing heavy: Ray's own actors hold these too."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal


class Interrupted(Exception):
    """Training was asked to stop, and its checkpoint is saved."""


@dataclass
class Progress:
    """What the driver shows while workers train; plain numbers, so that it travels."""

    stage: Literal["training", "validating"] = "training"
    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    train_loss: float = math.nan
    tokens_per_second: float = 0.0
    valid: dict[str, float] = field(default_factory=dict)
    validations: int = 0
    """How many there were, those before a resume included."""
    notes: list[str] = field(default_factory=list)
    """What happened to the workers so far."""


@dataclass
class Heartbeat:
    """What this rank is doing, for whoever watches that it lives: `beats` grows whenever it gets on."""

    doing: str = "starting"
    step: int = 0
    beats: int = 0
    waited: float = 0.0
    """Seconds that it waited for training batches."""
    gpu_bytes: int = 0
    """The most GPU memory that it held."""

    def beat(self, doing: str, step: int) -> None:
        self.doing, self.step, self.beats = doing, step, self.beats + 1

"""The position of a run: its step, its epoch and its history have one owner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from txclf.artifacts.attempts import Attempt
from txclf.training.step_schedule import StepSchedule
from txclf.training.timing import Timing


@dataclass
class TrainState:
    """Position and history of a run on one rank. The callbacks share it; the data loaders read it.

    All ranks hold the same values, except for `attempt` and `stop_requested`, which rank 0 sets.
    """

    schedule: StepSchedule
    step: int = 0
    """Optimizer steps done."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Step, epoch and metrics of each validation."""
    skipped: int = 0
    """Logged steps without a finite gradient."""
    logged_step: int = 0
    """Step of the last line of the log."""
    train_loss: float = float("nan")
    """Mean loss of the steps of the last line of the log."""
    in_step: bool = False
    """True between two micro-batches of a step."""
    stop_requested: bool = False
    """True if the driver asked for a stop."""
    attempt: Attempt | None = None
    """The attempt that owns the run folder."""
    timing: Timing = field(default_factory=Timing)
    notes: list[str] = field(default_factory=list)
    """Messages for the user about the start of this attempt."""

    @classmethod
    def from_checkpoint(
        cls, schedule: StepSchedule, checkpoint: Mapping[str, Any] | None, notes: Sequence[str] = ()
    ) -> TrainState:
        """Return the state at a checkpoint, or that of a new run."""
        if checkpoint is None:
            return cls(schedule, notes=list(notes))
        step = checkpoint["step"]
        logged_step = checkpoint.get("unlogged", {"step": step})["step"]
        skipped = checkpoint.get("skipped", 0)
        return cls(schedule, step, checkpoint["history"], skipped, logged_step, notes=list(notes))

    @property
    def epoch(self) -> float:
        """Epochs done."""
        return self.schedule.epoch(self.step)

    @property
    def at_validation(self) -> bool:
        """True if a validation follows the last step."""
        return self.step > 0 and self.step == self.schedule.next_validation(self.step - 1)

    @property
    def complete(self) -> bool:
        """True after the last step of the last epoch."""
        return self.step >= self.schedule.total_steps

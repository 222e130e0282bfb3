"""Decisions of rank 0 between two steps, which all ranks must follow at the same step."""

from __future__ import annotations

import enum
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import distributed


class Decision(enum.IntFlag):
    """What the ranks do after a step."""

    CONTINUE = 0
    SAVE = 1
    """Save a checkpoint."""
    STOP = 2
    """End the run."""
    PAUSE = 4
    """Train no further until Ray Train restarts the workers."""


class DecisionBroadcast:
    """Brings a decision of rank 0 to all ranks while they compute the next step.

    The broadcast of a step is waited for after the next step. By then it has arrived, because each step needs all
    ranks. It runs over gloo on the CPU, so a GPU is not synchronized.
    """

    def __init__(self, decide: Callable[[], Decision], world_size: int, timeout_s: float) -> None:
        """Create the process group. All ranks call it together."""
        timeout = timedelta(seconds=timeout_s)
        self.decide = decide
        self.group = distributed.new_group(backend="gloo", timeout=timeout) if world_size > 1 else None
        self.sent: tuple[Any, torch.Tensor] | None = None

    def receive(self) -> Decision:
        """Return the decision that `send` sent after the last step, or that of now if there is one process only."""
        if self.group is None:
            return self.decide()
        if self.sent is None:
            return Decision.CONTINUE
        (work, value), self.sent = self.sent, None
        work.wait()
        return Decision(int(value))

    def send(self) -> None:
        """Send the decision of rank 0. All ranks call it after the same step."""
        if self.group is not None:
            value = torch.tensor(int(self.decide()), dtype=torch.uint8)
            self.sent = distributed.broadcast(value, 0, group=self.group, async_op=True), value

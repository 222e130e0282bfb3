"""The board of a Ray run: where the workers leave what they do and the driver what it wants. Runs as an actor."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from txclf.core.errors import TxclfError
from txclf.training.progress import Heartbeat, Progress

DATA = ("reading data", "waiting for data")
"""What a worker does while it has no batch."""


@dataclass
class Rank:
    """A worker as the board last heard of it."""

    worker: Any
    """Its actor handle."""
    pulse: Heartbeat
    heard: float
    moved: float
    """Monotonic time of the last sign of life, and of the last one with a new beat."""


@dataclass(frozen=True)
class StalledWorker:
    """A worker that will not get on by itself."""

    message: str
    worker: Any


class WorkerMonitor:
    """Progress and signs of life of the workers; stop and failure between them and the driver."""

    def __init__(self) -> None:
        self.progress: Progress | None = None
        self.stop = False
        self.failure: TxclfError | None = None
        self.ranks: dict[int, Rank] = {}

    def post(self, progress: Progress) -> bool:
        """Takes the progress of rank 0; whether the driver wants a stop."""
        self.progress = progress
        return self.stop

    def latest(self) -> tuple[Progress | None, int]:
        """The last progress, and the number of workers there are."""
        return self.progress, len(self.ranks)

    def ask_stop(self) -> None:
        self.stop = True

    def fail(self, error: TxclfError) -> None:
        self.failure = self.failure or error

    def failed(self) -> TxclfError | None:
        return self.failure

    def join(self, rank: int, world_size: int, worker: Any) -> None:
        """A worker begins."""
        self.ranks = {number: one for number, one in self.ranks.items() if number < world_size}
        now = time.monotonic()
        self.ranks[rank] = Rank(worker, Heartbeat(), now, now)

    def leave(self) -> None:
        """A worker ended, and with it the group."""
        self.ranks = {}

    def beat(self, rank: int, pulse: Heartbeat) -> None:
        """A sign of life."""
        known = self.ranks.get(rank)
        if known:
            known.heard = time.monotonic()
            if pulse.beats != known.pulse.beats:
                known.moved = known.heard
            known.pulse = pulse

    def lost(self, timeout: float) -> StalledWorker | None:
        """The worker that all wait for, when none got on for `timeout` seconds or one is not heard of; else None.

        Workers stand still together, for each step needs all of them: the one to name is the one that is silent, else
        one that waits for data, else the one with the fewest steps.
        """
        now = time.monotonic()
        silent = {number: one for number, one in self.ranks.items() if now - one.heard > timeout}
        moving = any(now - one.moved <= timeout for one in self.ranks.values())
        if not self.ranks or (moving and not silent):
            return None
        waiting = {number: one for number, one in self.ranks.items() if one.pulse.doing in DATA}
        number, one = min((silent or waiting or self.ranks).items(), key=lambda item: (item[1].pulse.step, item[0]))
        missing = "sign of life" if silent else "batch" if waiting else "step"
        seconds = now - (one.heard if silent else one.moved)
        self.leave()
        message = f"rank {number}: no {missing} for {seconds:.0f} s ({one.pulse.doing}, step {one.pulse.step:,})"
        return StalledWorker(message, one.worker)

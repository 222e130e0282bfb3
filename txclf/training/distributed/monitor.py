"""Monitoring of the workers of a run on Ray: their progress, their heartbeats, and which of them is stalled.

Imports nothing heavy, because it runs as an actor of its own.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from txclf.core.errors import TxclfError
from txclf.training.progress import Heartbeat, Progress

SILENT_S = 20.0
"""Seconds without a heartbeat, which comes every second, after which a worker counts as gone."""
WAITING_FOR_DATA = "waiting for data"
"""Activity of a worker that has no batch."""


@dataclass
class Rank:
    """A worker as the monitor last heard of it."""

    worker: Any
    """Actor handle."""
    heartbeat: Heartbeat
    heard: float
    """Monotonic time of the last heartbeat."""
    progressed: float
    """Monotonic time of the last heartbeat with a new beat."""


@dataclass(frozen=True)
class StalledWorker:
    """A worker that makes no progress and must be ended."""

    message: str
    worker: Any
    """Actor handle."""


class WorkerMonitor:
    """Mailbox between the workers and the driver: progress, heartbeats, requests to stop or pause, and a failure."""

    def __init__(self) -> None:
        self.progress: Progress | None = None
        self.stop, self.resizing = False, False
        self.failure: TxclfError | None = None
        self.ranks: dict[int, Rank] = {}

    def report(self, progress: Progress) -> bool:
        """Take the progress of rank 0; return True if the driver wants a stop."""
        self.progress = progress
        return self.stop

    def latest(self) -> tuple[Progress | None, int, int]:
        """Return the last progress, the number of workers, and of those that are heard."""
        now = time.monotonic()
        return self.progress, len(self.ranks), sum(now - known.heard < SILENT_S for known in self.ranks.values())

    def request_stop(self) -> None:
        """Ask the workers to save a checkpoint and stop."""
        self.stop = True

    def pause(self) -> bool:
        """Ask the workers to save a checkpoint and pause; return True if all of them have."""
        self.resizing = True
        return bool(self.ranks) and all(known.heartbeat.paused for known in self.ranks.values())

    def fail(self, error: TxclfError) -> None:
        """Record the error of a worker; the first one counts."""
        self.failure = self.failure or error

    def failed(self) -> TxclfError | None:
        """Return the error of a worker, or None."""
        return self.failure

    def join(self, rank: int, world_size: int, worker: Any) -> None:
        """Add a worker that begins."""
        self.resizing = False  # this worker is one of the new number
        self.ranks = {number: known for number, known in self.ranks.items() if number < world_size}
        now = time.monotonic()
        self.ranks[rank] = Rank(worker, Heartbeat(), now, now)

    def leave(self, rank: int | None = None) -> None:
        """Forget a worker that has finished, or all of them, because the group ends with the first that fails."""
        self.ranks = {} if rank is None else {number: known for number, known in self.ranks.items() if number != rank}

    def beat(self, rank: int, heartbeat: Heartbeat) -> tuple[bool, bool]:
        """Take the heartbeat of a worker; return whether the workers must stop, and whether they must pause."""
        known = self.ranks.get(rank)
        if known:
            known.heard = time.monotonic()
            if heartbeat.beats != known.heartbeat.beats:
                known.progressed = known.heard
            known.heartbeat = heartbeat
        return self.stop, self.resizing

    def stalled(self, timeout: float) -> StalledWorker | None:
        """Return the stalled worker, or None.

        A worker is stalled if it sent no heartbeat for `timeout` seconds, or if no worker made progress and the others
        wait for it. Workers stall together, because each step needs all of them. The one to end is the silent one, or
        one that waits for data, or the one with the fewest steps.
        """
        now = time.monotonic()
        silent = {number: known for number, known in self.ranks.items() if now - known.heard > timeout}
        progressing = any(now - known.progressed <= timeout for known in self.ranks.values())
        if not self.ranks or (progressing and not silent):
            return None
        waiting = {
            number: known for number, known in self.ranks.items() if known.heartbeat.activity == WAITING_FOR_DATA
        }
        candidates = silent or waiting or self.ranks
        number, worst = min(candidates.items(), key=lambda item: (item[1].heartbeat.step, item[0]))
        missing = "heartbeat" if silent else "batch" if waiting else "step"
        seconds = now - (worst.heard if silent else worst.progressed)
        self.leave()
        heartbeat = worst.heartbeat
        message = f"rank {number}: no {missing} for {seconds:.0f} s ({heartbeat.activity}, step {heartbeat.step:,})"
        return StalledWorker(message, worst.worker)

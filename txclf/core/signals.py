"""SIGINT and SIGTERM as requests to stop: the first ones are collected, the next one ends the process."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """The stop signals that this process has received.

    `max_collected` is the number of signals that are only collected. Each further one raises `SystemExit` with the
    shell's exit code, 128 + the signal's number.
    """

    def __init__(self, max_collected: float) -> None:
        self.max_collected = max_collected
        self.received: list[int] = []

    @property
    def exit_code(self) -> int:
        """Exit code of a process that the first signal stopped."""
        return 128 + self.received[0]

    def handle(self, number: int, frame: object) -> None:
        """Collect a signal, or raise `SystemExit` if `max_collected` signals were received before."""
        self.received.append(number)
        if len(self.received) > self.max_collected:
            raise SystemExit(128 + number)

    def collect_all(self) -> None:
        """Collect every signal from now on. Raises `SystemExit` if one was received before."""
        if self.received:  # Python drops exceptions raised in some of its own callbacks
            raise SystemExit(self.exit_code)
        self.max_collected = math.inf


@contextmanager
def stop_signals(max_collected: int = 1) -> Iterator[StopSignals]:
    """Handle SIGINT and SIGTERM during the block, and restore the earlier handlers after it.

    The first `max_collected` signals are collected; the next one raises `SystemExit` in the main thread.
    """
    signals = StopSignals(max_collected)
    earlier = {number: signal.signal(number, signals.handle) for number in STOP_SIGNALS}
    try:
        yield signals
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)

"""The time of a run, on one rank."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass
class Timing:
    """Seconds, tokens and operations, summed since the attempt began."""

    first_step: float = 0.0
    """Wall-clock time of the first step."""
    steps: float = 0.0
    """Seconds in steps."""
    data: float = 0.0
    """Seconds waiting for batches."""
    validation: float = 0.0
    """Seconds in validations."""
    checkpoints: float = 0.0
    """Seconds saving checkpoints."""
    tokens: int = 0
    """Real tokens trained on."""
    positions: int = 0
    """Positions trained on, padding included."""
    flops: float = 0.0
    """Floating-point operations that these tokens need (`txclf.training.mfu`)."""
    started: float = 0.0
    """Monotonic time at which the running step or validation began."""
    _last: tuple[float, float, int] = (0.0, 0.0, 0)
    """Seconds of steps and of data, and tokens, at the last call of `pace`."""

    def start(self) -> None:
        """Begin to time a step or a validation."""
        self.started = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds since `start`."""
        return time.perf_counter() - self.started

    @property
    def worked(self) -> float:
        """Seconds in steps and waiting for their batches."""
        return self.steps + self.data

    def pace(self, running: float, world_size: int) -> dict[str, float]:
        """Return `tokens_per_second` over all ranks and `data_share` since the last call.

        `running` is the seconds of a step whose tokens are in `tokens`, but whose time is not in `steps` yet.
        """
        now = self.steps + running, self.data, self.tokens
        steps, data, tokens = (after - before for after, before in zip(now, self._last, strict=True))
        self._last = now
        seconds = max(steps + data, 1e-9)
        return {"tokens_per_second": round(tokens * world_size / seconds, 1), "data_share": round(data / seconds, 4)}

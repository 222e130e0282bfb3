"""Where the seconds of a run went, on one rank."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Clock:
    """Seconds and tokens, summed since the attempt began."""

    first_step: float = 0.0
    """Wall-clock time of the first step."""
    steps: float = 0.0
    data: float = 0.0
    validation: float = 0.0
    checkpoints: float = 0.0
    tokens: int = 0
    flops: float = 0.0
    """Floating-point operations that these tokens need (`txclf.training.mfu`)."""
    told: tuple[float, float, int] = (0.0, 0.0, 0)
    """Seconds of steps and of data, and tokens, at the last `pace`."""

    def pace(self, running: float, world_size: int) -> dict[str, float]:
        """Real tokens a second over all ranks, and the share of the time that waited for data, since the last call.

        `running`: seconds of the step that is not in `steps` yet, though its tokens are in `tokens`.
        """
        now = self.steps + running, self.data, self.tokens
        steps, data, tokens = (after - before for after, before in zip(now, self.told, strict=True))
        self.told = now
        seconds = max(steps + data, 1e-9)
        return {"tokens_per_second": round(tokens * world_size / seconds, 1), "data_share": round(data / seconds, 4)}

"""What the workers report of a run when it ends. Imports nothing heavy: the driver of a run on Ray reads it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class RunStats(BaseModel):
    """Measurements of a run, made by rank 0 during its last attempt."""

    model_config = ConfigDict(frozen=True)

    workers: int
    """Number of workers; 0 = in this process."""
    device: str
    precision: str
    parameters: int
    steps: int
    """Optimizer steps done."""
    epochs: float
    rows_seen: int
    steps_skipped: int
    """Steps whose gradient was not finite."""
    stopped_early: bool
    padding_share: float
    """Share of the positions of training batches that hold no token."""
    data_share: float
    """Share of the time of the steps spent waiting for data."""
    tokens_per_second: float
    """Real tokens per second of steps and data, over all workers."""
    mfu: float | None = None
    """Share of `matrix_rate` that the model's own operations reached over the same seconds (`txclf.training.mfu`)."""
    matrix_rate: float | None = None
    """Floating-point operations per second of large matrix products, measured on a worker's device and precision."""
    seconds: dict[str, float]
    """Seconds of the last attempt: `startup`, `data`, `steps`, `validation`, `checkpoints`, `total`."""

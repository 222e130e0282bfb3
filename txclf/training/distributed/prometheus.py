"""Metrics of a run on Ray for Prometheus, which every Ray node serves; docs/ray/clusters.md lists them."""

from __future__ import annotations

import math

from ray.util.metrics import Gauge

from txclf.training.distributed.monitor import WorkerMonitor
from txclf.training.progress import Heartbeat, Progress


class PrometheusMonitor(WorkerMonitor):
    """Monitor that exports progress and heartbeats as gauges. Runs as an actor, because Ray collects only those."""

    def __init__(self, run: str) -> None:
        super().__init__()
        self.run = run
        self.step = _gauge("step", "Optimizer steps done")
        self.epoch = _gauge("epoch", "Passes over the training rows done")
        self.train_loss = _gauge("train_loss", "Mean loss of a training row since the log line before")
        self.tokens = _gauge("tokens_per_second", "Training tokens per second without padding, over all workers")
        self.valid = _gauge("valid", "The last validation", "metric")
        self.waited = _gauge("data_wait_seconds", "Time that a worker waited for batches", "rank")
        self.gpu = _gauge("gpu_memory_bytes", "Maximum GPU memory that a worker held", "rank")

    def report(self, progress: Progress) -> bool:
        """Export and take the progress of rank 0."""
        tags = {"run": self.run}
        self.step.set(progress.step, tags)
        self.epoch.set(progress.epoch, tags)
        self.tokens.set(progress.tokens_per_second, tags)
        if math.isfinite(progress.train_loss):
            self.train_loss.set(progress.train_loss, tags)
        for name, value in progress.valid.items():
            self.valid.set(value, {**tags, "metric": name.removeprefix("valid_")})
        return super().report(progress)

    def beat(self, rank: int, heartbeat: Heartbeat) -> tuple[bool, bool]:
        """Export and take the heartbeat of a worker."""
        tags = {"run": self.run, "rank": str(rank)}
        self.waited.set(heartbeat.waited, tags)
        self.gpu.set(heartbeat.gpu_bytes, tags)
        return super().beat(rank, heartbeat)


def _gauge(name: str, description: str, *tags: str) -> Gauge:
    return Gauge(f"txclf_{name}", description=description, tag_keys=("run", *tags))

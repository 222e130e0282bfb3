"""The gauges of a run hold what the workers report; a cluster serves them in end_to_end."""

from __future__ import annotations

import math
from typing import Any

import pytest
from ray.util.metrics import Gauge

from txclf.training.distributed import prometheus
from txclf.training.distributed.prometheus import PrometheusMonitor
from txclf.training.progress import Heartbeat, Progress


@pytest.fixture
def values(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], float]:
    """Values that gauges were set to, by name and the last tag."""
    found: dict[tuple[str, str], float] = {}

    class Recorded(Gauge):
        def set(self, value: float | None, tags: dict[str, str]) -> None:  # type: ignore[override]
            assert value is not None
            found[self.info["name"], list(tags.values())[-1]] = value
            super().set(value, tags)

    monkeypatch.setattr(prometheus, "Gauge", Recorded)
    return found


def test_report_sets_the_gauges_of_the_run(values: dict[tuple[str, Any], float]) -> None:
    monitor = PrometheusMonitor("trec")
    progress = Progress(step=7, epoch=0.5, train_loss=math.nan, tokens_per_second=9.0, valid={"valid_loss": 0.25})
    assert monitor.report(progress) is False
    assert values == {
        ("txclf_step", "trec"): 7,
        ("txclf_epoch", "trec"): 0.5,
        ("txclf_tokens_per_second", "trec"): 9.0,
        ("txclf_valid", "loss"): 0.25,
    }
    progress.train_loss = 1.5
    monitor.request_stop()
    assert monitor.report(progress) is True
    assert values["txclf_train_loss", "trec"] == 1.5


def test_beat_sets_the_gauges_of_the_rank(values: dict[tuple[str, Any], float]) -> None:
    monitor = PrometheusMonitor("trec")
    monitor.join(1, 2, "worker")
    monitor.beat(1, Heartbeat("training", 3, 4, waited=2.5, gpu_bytes=10))
    assert values == {("txclf_data_wait_seconds", "1"): 2.5, ("txclf_gpu_memory_bytes", "1"): 10}
    assert monitor.ranks[1].heartbeat.step == 3

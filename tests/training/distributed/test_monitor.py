"""The monitor finds the stalled worker, and only if one is stalled."""

from __future__ import annotations

import pytest

from txclf.training.distributed.monitor import WorkerMonitor
from txclf.training.progress import Heartbeat


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the monotonic time that the monitor sees, to be set."""
    now = [1000.0]
    monkeypatch.setattr("txclf.training.distributed.monitor.time.monotonic", lambda: now[0])
    return now


def joined(world_size: int) -> WorkerMonitor:
    made = WorkerMonitor()
    for rank in range(world_size):
        made.join(rank, world_size, f"worker {rank}")
    return made


def beats(made: WorkerMonitor, doing: list[str], steps: list[int], count: int) -> None:
    for rank, (what, step) in enumerate(zip(doing, steps, strict=True)):
        made.beat(rank, Heartbeat(what, step, count))


def test_stalled_progressing_workers_is_none(clock: list[float]) -> None:
    made = joined(3)
    for count in range(1, 50):
        clock[0] += 9
        beats(made, ["training"] * 3, [count] * 3, count)
        assert made.stalled(10) is None


def test_stalled_silent_worker_is_returned(clock: list[float]) -> None:
    made = joined(3)
    beats(made, ["training"] * 3, [7] * 3, 1)
    for count in range(2, 14):
        clock[0] += 1
        made.beat(0, Heartbeat("training", 7, 1))
        made.beat(2, Heartbeat("training", 7 + count, count))
    lost = made.stalled(10)
    assert lost
    assert lost.worker == "worker 1"
    assert lost.message == "rank 1: no heartbeat for 12 s (training, step 7)"
    assert made.stalled(10) is None  # its group is gone


def test_stalled_worker_waiting_for_data_is_returned(clock: list[float]) -> None:
    made = joined(3)
    for _ in range(13):
        clock[0] += 1
        beats(made, ["training", "waiting for data", "training"], [8, 7, 8], 1)
    lost = made.stalled(10)
    assert lost
    assert lost.message == "rank 1: no batch for 12 s (waiting for data, step 7)"


def test_stalled_worker_with_the_fewest_steps_is_returned(clock: list[float]) -> None:
    made = joined(2)
    for _ in range(13):
        clock[0] += 1
        beats(made, ["training", "saving a checkpoint"], [9, 8], 1)
    lost = made.stalled(10)
    assert lost
    assert lost.message == "rank 1: no step for 12 s (saving a checkpoint, step 8)"


def test_beat_brings_the_requests_to_stop_and_to_pause() -> None:
    made = joined(2)
    assert made.beat(0, Heartbeat()) == (False, False)
    made.request_stop()
    made.pause()
    assert made.beat(0, Heartbeat()) == (True, True)


def test_pause_is_true_when_all_workers_are_paused_and_ends_with_their_group() -> None:
    made = joined(2)
    assert not made.pause()
    made.beat(0, Heartbeat(paused=True))
    assert not made.pause()
    made.beat(1, Heartbeat(paused=True))
    assert made.pause()
    made.join(0, 3, "of a larger group")
    assert made.beat(0, Heartbeat()) == (False, False)


def test_join_fewer_workers_forgets_the_others(clock: list[float]) -> None:
    made = joined(3)
    clock[0] += 8
    made.join(0, 1, "again")
    clock[0] += 8
    made.beat(0, Heartbeat("training", 3, 1))
    assert made.stalled(10) is None
    assert made.latest() == (None, 1, 1)


def test_latest_counts_the_workers_that_are_heard(clock: list[float]) -> None:
    made = joined(2)
    clock[0] += 30
    made.beat(0, Heartbeat("training", 7, 1))
    assert made.latest() == (None, 2, 1)
    clock[0] += 30
    assert made.latest() == (None, 2, 0)


def test_stalled_watches_the_last_worker_while_the_others_have_finished(clock: list[float]) -> None:
    made = joined(2)
    beats(made, ["training"] * 2, [7] * 2, 1)
    made.leave(1)
    assert made.latest()[1:] == (1, 1)
    for _ in range(13):
        clock[0] += 1
        made.beat(0, Heartbeat("closing the log", 7, 1))
    lost = made.stalled(10)
    assert lost
    assert lost.message == "rank 0: no step for 13 s (closing the log, step 7)"


def test_leave_of_a_failed_worker_forgets_its_group() -> None:
    made = joined(3)
    made.leave()
    assert made.latest()[1:] == (0, 0)

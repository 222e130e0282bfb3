"""The metric logger: `metrics.jsonl`, TensorBoard events and the tracker."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from txclf.artifacts import metric_logger
from txclf.artifacts.metric_logger import LogReader, MetricLogger
from txclf.artifacts.trackers import Status
from txclf.core.errors import StorageError


class ListTracker:
    """Tracker that keeps all values in a list."""

    def __init__(self) -> None:
        self.written: list[tuple[int, dict[str, float]]] = []
        self.status: Status | None = None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.written.append((step, dict(values)))

    def close(self, status: Status) -> None:
        self.status = status


def log(folder: Path, first: int, last: int) -> MetricLogger:
    """Log the steps from `first` to `last`."""
    logger = MetricLogger(str(folder), first - 1)
    for step in range(first, last + 1):
        logger.write({"step": step, "train_loss": 1 / step})
    logger.close()
    return logger


def test_write_appends_lines_and_events_and_feeds_the_tracker(tmp_path: Path) -> None:
    tracker = ListTracker()
    logger = MetricLogger(str(tmp_path), 0, tracker)
    logger.write({"step": 5, "train_loss": 0.5, "learning_rate": 0.25})
    logger.write({"step": 10, "train_loss": None, "valid_loss": 2.0, "valid_rows": 7})
    logger.close("KILLED")
    assert metric_logger.read(str(tmp_path / "metrics.jsonl")) == [
        {"step": 5, "train_loss": 0.5, "learning_rate": 0.25},
        {"step": 10, "train_loss": None, "valid_loss": 2.0, "valid_rows": 7},
    ]
    assert tracker.written == [(5, {"train_loss": 0.5, "learning_rate": 0.25}), (10, {"valid_loss": 2.0})]
    assert tracker.status == "KILLED"
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(point.step, point.value) for point in events.Scalars("valid_loss")] == [(10, 2.0)]
    assert "valid_rows" not in events.Tags()["scalars"]


def test_logger_resumed_drops_the_steps_after_the_checkpoint(tmp_path: Path) -> None:
    assert log(tmp_path, 1, 8).repeated == 0
    assert log(tmp_path, 6, 7).repeated == 3
    assert [line["step"] for line in metric_logger.read(str(tmp_path / "metrics.jsonl"))] == [1, 2, 3, 4, 5, 6, 7]


def test_write_not_a_number_is_refused(tmp_path: Path) -> None:
    logger = MetricLogger(str(tmp_path), 0)
    with pytest.raises(ValueError, match="JSON"):
        logger.write({"step": 1, "train_loss": math.nan})
    logger.close()
    assert metric_logger.read(str(tmp_path / "metrics.jsonl")) == []


def test_logger_in_a_folder_that_is_a_file_raises(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file/metrics\.jsonl`: cannot be "):
        MetricLogger(str(tmp_path / "file"), 0)


def test_read_ignores_an_incomplete_last_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert metric_logger.read(str(path)) == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"step"')
    assert metric_logger.read(str(path)) == [{"step": 1}, {"step": 2}]


def validations(folder: Path) -> list[dict[str, float]]:
    return [line for line in metric_logger.read(str(folder / "metrics.jsonl")) if "valid_loss" in line]


def test_log_reader_follows_a_growing_log_and_reads_only_what_was_appended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = LogReader(str(tmp_path))
    assert reader.read() == []
    parsed: list[bytes] = []
    loads = json.loads

    def counted(line: bytes) -> object:
        parsed.append(line)
        return loads(line)

    monkeypatch.setattr(json, "loads", counted)
    logger = MetricLogger(str(tmp_path), 0)
    for step in range(1, 30):
        logger.write({"step": step, "valid_loss": 1 / step} if step % 3 == 0 else {"step": step, "train_loss": 1.0})
        found = reader.read()
        assert [line["step"] for line in found] == list(range(3, step + 1, 3))
    logger.close()
    assert len(parsed) == 9
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "valid_')  # half a line
        file.flush()
        assert len(reader.read()) == 9
        file.write('loss": 0.5}\n')
    assert reader.read() == validations(tmp_path)


@pytest.mark.parametrize("steps", [2, 50])
def test_log_reader_of_a_resumed_run_starts_again(tmp_path: Path, steps: int) -> None:
    reader = LogReader(str(tmp_path))
    logger = MetricLogger(str(tmp_path), 0)
    for step in range(1, 10):
        logger.write({"step": step, "valid_loss": 1.0})
    logger.close()
    assert len(reader.read()) == 9
    again = MetricLogger(str(tmp_path), 4)  # drops the lines of the steps after 4
    for step in range(5, 5 + steps):
        again.write({"step": step, "valid_loss": 2.0})
    again.close()
    assert reader.read() == validations(tmp_path)
    assert len(reader.read()) == 4 + steps


@pytest.mark.parametrize(
    "line", [b"[]", b"\xff", b"{", b'{"valid_loss": 1.0}', b'{"step": 1, "valid_loss": "x"}', b"[" * 100_000]
)
def test_read_damaged_line_raises(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": null}\n' + line + b"\n")
    with pytest.raises(StorageError, match=r"metrics\.jsonl`: (damaged|not valid JSON)"):
        metric_logger.read(str(path))
    path.write_bytes(b'{"step": 1, "loss": null}\n' + line)  # a line that is being written
    assert metric_logger.read(str(path)) == [{"step": 1, "loss": None}]

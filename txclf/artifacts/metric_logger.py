"""Metric logger of a run: `metrics.jsonl`, TensorBoard and the trackers."""

from __future__ import annotations

import io
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from txclf.artifacts.trackers import Status, Tracker
from txclf.core import storage
from txclf.core.errors import StorageError


class MetricLogger:
    """Writer of `metrics.jsonl` and of a TensorBoard event file in a run folder, continued after `step`.

    `tracker` receives the same values. `repeated` counts the logged steps after `step`, which are trained again. An
    object store cannot append, so there each `sync` writes both files whole. The methods raise `StorageError` if a
    file cannot be written.
    """

    def __init__(self, run_folder: str, step: int, tracker: Tracker | None = None) -> None:
        self.tracker = tracker
        self.path = storage.join(run_folder, "metrics.jsonl")
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self.events_path = storage.join(run_folder, "tensorboard", name)
        lines = read(self.path)
        # The steps after the checkpoint are trained and logged again.
        kept = "".join(json.dumps(line) + "\n" for line in lines if line["step"] <= step).encode()
        self.repeated = max([0, *(int(line["step"]) - step for line in lines)])
        storage.write_bytes(self.path, kept)
        storage.write_bytes(self.events_path, b"")
        self.local = storage.is_local(run_folder)
        self.lines, self.events = self._open(self.path, kept), self._open(self.events_path, b"")
        self.records = RecordWriter(self.events)
        self._event(step + 1, file_version="brain.Event:2")
        restart = SessionLog(status=SessionLog.START)  # TensorBoard drops later steps of earlier files
        self._event(step + 1, session_log=restart)

    def write(self, entry: Mapping[str, float | None]) -> None:
        """Append a line. A value is None if there is none, such as the loss when all steps were skipped."""
        with self._errors(self.path):
            self.lines.write((json.dumps(entry, allow_nan=False) + "\n").encode())
            self.lines.flush()
            shown = {name: value for name, value in entry.items() if name not in ("step", "valid_rows")}
            known = {name: value for name, value in shown.items() if value is not None}
            values = [Summary.Value(tag=name, simple_value=value) for name, value in known.items()]
            self._event(int(entry["step"] or 0), summary=Summary(value=values))
        if self.tracker:
            self.tracker.write(int(entry["step"] or 0), known)

    def sync(self) -> None:
        """Flush both files, or write them whole to an object store."""
        with self._errors(self.path):
            self.events.flush()
        for path, file in ((self.path, self.lines), (self.events_path, self.events)):
            if isinstance(file, io.BytesIO):
                storage.write_bytes(path, file.getvalue())

    def close(self, status: Status = "FINISHED") -> None:
        """Sync and close the files, and end the tracker's run with `status`."""
        try:
            self.sync()
        finally:
            if self.tracker:
                self.tracker.close(status)
            for file in (self.lines, self.events):
                with suppress(OSError):  # a full disk is reported once, by `sync`
                    file.close()

    def _open(self, path: str, content: bytes) -> BinaryIO:
        if self.local:
            return open(storage.local_path(path), "ab")
        file = io.BytesIO()
        file.write(content)
        return file

    def _event(self, step: int, **fields: Any) -> None:
        """Append a record in TensorBoard's format; its own writer uses a thread and loses errors."""
        self.records.write(Event(wall_time=time.time(), step=step, **fields).SerializeToString())

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"`{path}`: cannot be written: {error.strerror or error}. Free space or fix the permissions."
            ) from error


def read(path: str) -> list[dict[str, float]]:
    """Return the complete lines of a `metrics.jsonl`, none if there is no file."""
    lines = storage.read_bytes(path).splitlines(keepends=True) if storage.exists(path) else []
    return [_entry(line, path) for line in lines if line.endswith(b"\n")]


def _entry(line: bytes, path: str) -> dict[str, float]:
    """Return a line of a `metrics.jsonl`. Raises `StorageError` if it is damaged."""
    entry = storage.parse_json(line, path)
    if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
        raise StorageError(f"`{path}`: damaged: a line has no step. Remove the line.")
    if not all(value is None or isinstance(value, int | float) for value in entry.values()):
        raise StorageError(f"`{path}`: damaged: a value at step {entry['step']} is no number. Remove the line.")
    return entry


class LogReader:
    """Reader of the validations of a growing `metrics.jsonl`, which reads only what was appended since last time."""

    def __init__(self, run_folder: str) -> None:
        self.path = storage.join(run_folder, "metrics.jsonl")
        self.validations: list[dict[str, float]] = []
        self.end, self.last = 0, b""
        """Position after the last complete line, and that line."""

    def read(self) -> list[dict[str, float]]:
        """Return the validations of all complete lines. A log that a resumed run rewrote is read from its start."""
        if not storage.exists(self.path):
            self.validations, self.end, self.last = [], 0, b""
            return []
        filesystem, inner = storage.resolve(self.path)
        with filesystem.open_input_file(inner) as file:
            start = self.end - len(self.last)
            content = b""
            if file.size() >= self.end:
                file.seek(start)
                content = file.read()
            if file.size() < self.end or not content.startswith(self.last):
                self.validations, self.end, self.last = [], 0, b""
                file.seek(0)
                content = file.read()
        new = content[len(self.last) : content.rfind(b"\n") + 1]
        lines = new.splitlines(keepends=True)
        self.validations += [_entry(line, self.path) for line in lines if b'"valid_loss"' in line]
        self.end, self.last = self.end + len(new), lines[-1] if lines else self.last
        return self.validations

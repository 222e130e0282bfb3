"""Checkpoints in the run folder, from which training resumes as if it had not been interrupted.

    checkpoints/step-00000123/state.pt           weights, optimizer, scaler, history of validations
    checkpoints/step-00000123/checkpoint.json    written last; without it the checkpoint is ignored

The batch, learning rate and dropout of each step are pure functions of (seed, rank, step), so a checkpoint needs no
position in the data and no random state.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from txclf.core import storage
from txclf.core.errors import StorageError

MARK = "checkpoint.json"
"""File that marks a checkpoint as complete."""
STATE = "state.pt"


class Checkpoint(NamedTuple):
    """Complete checkpoint on storage."""

    step: int
    metrics: dict[str, float]
    """Metrics of the validation at this step; empty without one."""
    path: str
    """Folder of the checkpoint."""
    sha256: str
    """SHA-256 of the state file, in hexadecimal digits."""


def save(folder: str, step: int, metrics: Mapping[str, float], state: Mapping[str, Any]) -> None:
    """Write a checkpoint: first the state, then the mark that makes it complete."""
    path = storage.join(folder, f"step-{step:08d}")
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    content = buffer.getvalue()
    storage.remove_file(storage.join(path, MARK))  # an earlier state of this step is incomplete from here on
    storage.write_bytes(storage.join(path, STATE), content)
    mark = {"step": step, "metrics": dict(metrics), "sha256": hashlib.sha256(content).hexdigest()}
    storage.write_json(storage.join(path, MARK), mark)


def committed(folder: str) -> list[Checkpoint]:
    """Return the complete checkpoints, by step."""
    checkpoints = []
    for name in storage.list_folder(folder):
        path = storage.join(folder, name)
        if storage.exists(storage.join(path, MARK)):
            mark = storage.read_json(storage.join(path, MARK))
            checkpoints.append(Checkpoint(mark["step"], mark["metrics"], path, mark["sha256"]))
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.step)


def load(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the state of a checkpoint, on the CPU. Raises `StorageError` if the file is damaged."""
    path = storage.join(checkpoint.path, STATE)
    content = storage.read_bytes(path)
    if hashlib.sha256(content).hexdigest() != checkpoint.sha256:
        raise StorageError(
            f"`{path}`: damaged: its content changed. Remove its folder to resume from the previous checkpoint."
        )
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    assert isinstance(state, dict)
    return state


def better(monitor: str, value: float, other: float) -> bool:
    """Return True if `value` of `monitor` is better than `other`: lower for a loss, higher for other metrics."""
    return value < other if monitor == "valid_loss" else value > other


def best(entries: Sequence[Mapping[str, float]], monitor: str) -> int:
    """Return the index of the best validation, the earliest of equals."""
    winner = 0
    for index, entry in enumerate(entries):
        if better(monitor, entry[monitor], entries[winner][monitor]):
            winner = index
    return winner


def ranked(checkpoints: Sequence[Checkpoint], monitor: str) -> list[Checkpoint]:
    """Return the validated checkpoints, best first, the earlier of equals first."""
    sign = 1.0 if monitor == "valid_loss" else -1.0
    validated = [checkpoint for checkpoint in checkpoints if monitor in checkpoint.metrics]
    return sorted(validated, key=lambda checkpoint: (sign * checkpoint.metrics[monitor], checkpoint.step))


def prune(folder: str, monitor: str, keep: int) -> None:
    """Remove all checkpoints but the last one and the `keep` best."""
    checkpoints = committed(folder)
    kept = {checkpoint.path for checkpoint in [*ranked(checkpoints, monitor)[:keep], *checkpoints[-1:]]}
    for checkpoint in checkpoints:
        if checkpoint.path not in kept:
            storage.remove_folder(checkpoint.path)

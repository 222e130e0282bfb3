"""Checkpoints in the run folder: what training needs to go on as if it had never stopped.

    checkpoints/step-00000123/state.pt           weights, optimizer, scaler, history of validations
    checkpoints/step-00000123/checkpoint.json    written last: without it the checkpoint does not count

Every step's batch, learning rate and dropout are pure functions of (seed, rank, step), so the step is all there is to
the position in the data and to the random state.
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
STATE = "state.pt"


class Checkpoint(NamedTuple):
    """A committed checkpoint."""

    step: int
    metrics: dict[str, float]
    """Of the validation at this step; empty where there was none."""
    path: str
    sha256: str
    """Of the state."""


def save(folder: str, step: int, metrics: Mapping[str, float], state: Mapping[str, Any]) -> None:
    """Writes a checkpoint; it counts from the moment its mark is there."""
    path = storage.join(folder, f"step-{step:08d}")
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    content = buffer.getvalue()
    storage.remove_file(storage.join(path, MARK))  # of an earlier state at this step
    storage.write_bytes(storage.join(path, STATE), content)
    mark = {"step": step, "metrics": dict(metrics), "sha256": hashlib.sha256(content).hexdigest()}
    storage.write_json(storage.join(path, MARK), mark)


def committed(folder: str) -> list[Checkpoint]:
    """The checkpoints that count, by step."""
    found = []
    for name in storage.list_folder(folder):
        path = storage.join(folder, name)
        if storage.exists(storage.join(path, MARK)):
            mark = storage.read_json(storage.join(path, MARK))
            found.append(Checkpoint(mark["step"], mark["metrics"], path, mark["sha256"]))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def load(checkpoint: Checkpoint) -> dict[str, Any]:
    """The state of a checkpoint, on the CPU. Raises `StorageError` when it is damaged."""
    path = storage.join(checkpoint.path, STATE)
    content = storage.read_bytes(path)
    if hashlib.sha256(content).hexdigest() != checkpoint.sha256:
        raise StorageError(f"`{path}`: damaged: its content changed; remove its folder to use the one before")
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    assert isinstance(state, dict)
    return state


def better(monitor: str, value: float, other: float) -> bool:
    """Whether a value of `monitor` is better than another: lower for a loss, higher for the rest."""
    return value < other if monitor == "valid_loss" else value > other


def best(entries: Sequence[Mapping[str, float]], monitor: str) -> int:
    """Index of the best validation; the earliest of equals."""
    winner = 0
    for index, entry in enumerate(entries):
        if better(monitor, entry[monitor], entries[winner][monitor]):
            winner = index
    return winner


def ranked(checkpoints: Sequence[Checkpoint], monitor: str) -> list[Checkpoint]:
    """Those that were validated, best first; the earlier of equals first."""
    sign = 1.0 if monitor == "valid_loss" else -1.0
    validated = [checkpoint for checkpoint in checkpoints if monitor in checkpoint.metrics]
    return sorted(validated, key=lambda checkpoint: (sign * checkpoint.metrics[monitor], checkpoint.step))


def prune(folder: str, monitor: str, keep: int) -> None:
    """Removes all but the last checkpoint and the `keep` best."""
    checkpoints = committed(folder)
    kept = {checkpoint.path for checkpoint in [*ranked(checkpoints, monitor)[:keep], *checkpoints[-1:]]}
    for checkpoint in checkpoints:
        if checkpoint.path not in kept:
            storage.remove_folder(checkpoint.path)

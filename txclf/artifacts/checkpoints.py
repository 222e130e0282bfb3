"""Checkpoints in the run folder, from which training resumes as if it had not been interrupted.

    checkpoints/step-00000123/state-<hash>.pt    weights, optimizer, scaler, history of validations
    checkpoints/step-00000123/checkpoint.json    written last; without it the checkpoint is ignored

The state file is named by a hash of its content. So a process that saves the same step, such as a worker of an earlier
attempt that still runs, cannot change the state that a committed checkpoint names.

The batch, learning rate and dropout of each step are pure functions of (seed, rank, step), so a checkpoint needs no
position in the data and no random state.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from txclf.config.base import direction
from txclf.core import storage
from txclf.core.errors import StorageError

MARK = "checkpoint.json"
"""File that marks a checkpoint as complete."""
UNNAMED_STATE = "state.pt"
"""State file of a checkpoint whose mark names none."""
_FIX = ". Remove its folder to use the checkpoint before it."


class Checkpoint(NamedTuple):
    """Complete checkpoint on storage."""

    step: int
    metrics: dict[str, float]
    """Metrics of the validation at this step; empty without one."""
    path: str
    """Folder of the checkpoint."""
    sha256: str
    """SHA-256 of the state file, in hexadecimal digits."""
    state: str = UNNAMED_STATE
    """Name of the state file."""


class LastIntact(NamedTuple):
    """The checkpoint to resume from."""

    checkpoint: Checkpoint | None
    """None if there is no checkpoint."""
    state: dict[str, Any] | None
    """State of the checkpoint; None if it was not loaded."""
    damaged: list[str]
    """File and damage of each later checkpoint, the last one first."""

    def notes(self) -> list[str]:
        """Return a message for the user per damaged checkpoint."""
        step = self.checkpoint.step if self.checkpoint else 0
        return [f"{damage}. The run resumes from the last intact checkpoint, step {step:,}." for damage in self.damaged]


def path_of(folder: str, step: int) -> str:
    """Return the folder of the checkpoint of a step."""
    return storage.join(folder, f"step-{step:08d}")


def save(folder: str, step: int, metrics: Mapping[str, float], state: Mapping[str, Any]) -> None:
    """Write a checkpoint: first the state, then the mark that makes it complete."""
    import torch  # only here and in `load`: Ray's controller reads marks and must start quickly

    path = path_of(folder, step)
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    content = buffer.getvalue()
    sha256 = hashlib.sha256(content).hexdigest()
    name = f"state-{sha256[:16]}.pt"
    mark = {"step": step, "metrics": dict(metrics), "sha256": sha256, "state": name}
    replaced = _replaced_state(path)
    storage.write_bytes(storage.join(path, name), content)
    storage.write_json(storage.join(path, MARK), mark)
    if replaced and replaced != name:
        storage.remove_file(storage.join(path, replaced))


def _replaced_state(path: str) -> str | None:
    """Return the name of the state file that a checkpoint folder has, or None."""
    if not storage.exists(storage.join(path, MARK)):
        return None
    try:
        return _read(path).state
    except StorageError:
        return None  # a damaged mark, which is replaced


def committed(folder: str) -> list[Checkpoint]:
    """Return the complete checkpoints, by step. Raises `StorageError` if a mark is damaged."""
    return [_read(path) for _, path in _paths(folder)]


def last_intact(folder: str, load_state: bool = False) -> LastIntact:
    """Return the last checkpoint that is not damaged, with its state if `load_state` is set.

    The result follows from the files alone, so all processes that read them find the same checkpoint.

    Raises `StorageError` if there are checkpoints, but all of them are damaged.
    """
    damaged: list[str] = []
    for _, path in reversed(_paths(folder)):
        try:
            checkpoint = _read(path)
            if load_state:
                return LastIntact(checkpoint, load(checkpoint), damaged)
            _require_intact(checkpoint)
            return LastIntact(checkpoint, None, damaged)
        except StorageError as error:
            damaged.append(str(error).removesuffix(_FIX))
    if damaged:
        raise StorageError(
            f"`{folder}`: all checkpoints are damaged ({'; '.join(damaged)}). Restore a copy, or remove the folder to "
            "train from the first step."
        )
    return LastIntact(None, None, [])


def load(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the state of a checkpoint, on the CPU. Raises `StorageError` if the file is damaged."""
    import torch

    path = storage.join(checkpoint.path, checkpoint.state)
    content = storage.read_bytes(path)
    if hashlib.sha256(content).hexdigest() != checkpoint.sha256:
        raise _damaged(path)
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several kinds for a file that is not one of its own
        raise StorageError(f"`{path}`: damaged: not the state of a checkpoint{_FIX}") from error
    if not isinstance(state, dict):
        raise StorageError(f"`{path}`: damaged: not the state of a checkpoint{_FIX}")
    return state


def _require_intact(checkpoint: Checkpoint) -> None:
    path = storage.join(checkpoint.path, checkpoint.state)
    if storage.sha256(path) != checkpoint.sha256:
        raise _damaged(path)


def _damaged(path: str) -> StorageError:
    return StorageError(f"`{path}`: damaged: its content changed{_FIX}")


def _paths(folder: str) -> list[tuple[int, str]]:
    """Return step and folder of the complete checkpoints, by step."""
    steps = [int(match[1]) for name in storage.list_folder(folder) if (match := re.fullmatch(r"step-(\d{8,})", name))]
    paths = [(step, storage.join(folder, f"step-{step:08d}")) for step in sorted(steps)]
    return [(step, path) for step, path in paths if storage.exists(storage.join(path, MARK))]


def _read(path: str) -> Checkpoint:
    """Return the checkpoint in a folder. Raises `StorageError` if its mark is damaged."""
    mark_path = storage.join(path, MARK)
    mark = storage.read_json(mark_path)
    found: dict[str, Any] = {"state": UNNAMED_STATE, **(mark if isinstance(mark, dict) else {})}
    values: tuple[Any, ...] = tuple(found.get(key) for key in ("step", "metrics", "sha256", "state"))
    step, metrics, sha256, state = values
    is_valid = (
        isinstance(step, int)
        and isinstance(metrics, dict)
        and all(isinstance(value, int | float) for value in metrics.values())
        and isinstance(sha256, str)
        and isinstance(state, str)
        and "/" not in state
    )
    if not is_valid:
        raise StorageError(f"`{mark_path}`: damaged: not the mark of a checkpoint{_FIX}")
    return Checkpoint(step, metrics, path, sha256, state)


def remove_after(folder: str, step: int) -> None:
    """Remove the checkpoints of later steps, which a run that resumes from `step` writes again."""
    for later, path in _paths(folder):
        if later > step:
            storage.remove_folder(path)


def better(monitor: str, value: float, other: float) -> bool:
    """Return True if `value` of `monitor` is better than `other`: lower for a loss, higher for other metrics."""
    return value < other if direction(monitor) == "min" else value > other


def best(entries: Sequence[Mapping[str, float]], monitor: str) -> int:
    """Return the index of the best validation, the earliest of equals."""
    winner = 0
    for index, entry in enumerate(entries):
        if better(monitor, entry[monitor], entries[winner][monitor]):
            winner = index
    return winner


def ranked(checkpoints: Sequence[Checkpoint], monitor: str) -> list[Checkpoint]:
    """Return the validated checkpoints, best first, the earlier of equals first."""
    sign = 1.0 if direction(monitor) == "min" else -1.0
    validated = [checkpoint for checkpoint in checkpoints if monitor in checkpoint.metrics]
    return sorted(validated, key=lambda checkpoint: (sign * checkpoint.metrics[monitor], checkpoint.step))


def prune(folder: str, monitor: str, keep: int) -> None:
    """Remove all checkpoints but the last one and the `keep` best."""
    checkpoints = committed(folder)
    kept = {checkpoint.path for checkpoint in [*ranked(checkpoints, monitor)[:keep], *checkpoints[-1:]]}
    for checkpoint in checkpoints:
        if checkpoint.path not in kept:
            storage.remove_folder(checkpoint.path)

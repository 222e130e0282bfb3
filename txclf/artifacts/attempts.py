"""`attempts.jsonl` of a run folder: one line per attempt to train. Only the last attempt may write to the folder."""

from __future__ import annotations

import time
import uuid

from pydantic import BaseModel, ConfigDict

from txclf.core import storage
from txclf.core.errors import StorageError

FILE = "attempts.jsonl"


class Attempt(BaseModel):
    """One group of workers that trains, from its start to its end."""

    model_config = ConfigDict(frozen=True)

    id: str
    time: float
    """Wall-clock time of the start, in seconds."""
    step: int
    """Step of the checkpoint that it resumes from; 0 for a new run."""
    workers: int
    """Number of workers."""
    repeated: int
    """Number of logged steps of the previous attempt that it trains again."""


def read(run_folder: str) -> list[Attempt]:
    """Return the attempts of a run, oldest first."""
    path = storage.join(run_folder, FILE)
    lines = storage.read_bytes(path).splitlines() if storage.exists(path) else []
    return [storage.as_model(storage.parse_json(line, path), Attempt, path) for line in lines]


def begin(run_folder: str, step: int, workers: int, repeated: int) -> Attempt:
    """Append a new attempt and return it. From then on the previous attempt may not write."""
    attempt = Attempt(id=uuid.uuid4().hex, time=time.time(), step=step, workers=workers, repeated=repeated)
    lines = [line.model_dump_json() + "\n" for line in [*read(run_folder), attempt]]
    storage.write_bytes(storage.join(run_folder, FILE), "".join(lines).encode())
    return attempt


def require_current(run_folder: str, attempt: Attempt) -> None:
    """Raise `StorageError` if a later attempt owns the run, because two must not write to one folder."""
    if read(run_folder)[-1].id != attempt.id:
        raise StorageError(f"`{run_folder}`: another process has resumed this run. Stop one of the two processes.")

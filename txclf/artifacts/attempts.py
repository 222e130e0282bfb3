"""`attempts.jsonl` of a run folder: a line for each time that workers began to train, and so who may write now."""

from __future__ import annotations

import time
import uuid

from pydantic import BaseModel, ConfigDict

from txclf.core import storage
from txclf.core.errors import StorageError

FILE = "attempts.jsonl"


class Attempt(BaseModel):
    """From the start of a group of workers to its end."""

    model_config = ConfigDict(frozen=True)

    id: str
    time: float
    """Wall-clock time of its beginning."""
    step: int
    """The step it goes on from."""
    workers: int
    repeated: int
    """Logged steps of the attempt before that it trains again."""


def read(run_folder: str) -> list[Attempt]:
    """The attempts of a run, first to last."""
    path = storage.join(run_folder, FILE)
    lines = storage.read_bytes(path).decode().splitlines() if storage.exists(path) else []
    return [Attempt.model_validate_json(line) for line in lines]


def begin(run_folder: str, step: int, workers: int, repeated: int) -> Attempt:
    """Writes a new attempt down, which ends the right to write of the one before."""
    attempt = Attempt(id=uuid.uuid4().hex, time=time.time(), step=step, workers=workers, repeated=repeated)
    lines = [one.model_dump_json() + "\n" for one in [*read(run_folder), attempt]]
    storage.write_bytes(storage.join(run_folder, FILE), "".join(lines).encode())
    return attempt


def require_current(run_folder: str, attempt: Attempt) -> None:
    """Raises `StorageError` when workers that began later own the run: two must not write one folder."""
    if read(run_folder)[-1].id != attempt.id:
        raise StorageError(f"`{run_folder}`: another process goes on with this run, so this one ends")

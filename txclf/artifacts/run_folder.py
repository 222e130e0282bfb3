"""What a folder is, by the files that lie in it, and how far a run has come."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from txclf.artifacts import attempts, checkpoints, metric_logger
from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.core.errors import DataError
from txclf.data import shards

Kind = Literal["run", "search", "bundle", "prepared"]


class RunState(NamedTuple):
    """A run, finished or not, as its folder tells it."""

    folder: str
    run: RunConfig
    summary: dict[str, Any] | None
    """`summary.json`; None while it is not finished."""
    log: list[dict[str, float]]
    prepared: str | None
    """The prepared folder, where it is still there."""
    manifest: shards.Manifest | None
    attempts: int
    """Times that workers began."""

    @property
    def validations(self) -> list[dict[str, float]]:
        return [line for line in self.log if "valid_loss" in line]

    @property
    def step(self) -> int:
        """The last step of the log."""
        return int(self.log[-1]["step"]) if self.log else 0

    @property
    def epochs(self) -> float:
        return float(self.log[-1]["epoch"]) if self.log else 0.0

    @property
    def best(self) -> dict[str, float] | None:
        """The best validation by `train.monitor`."""
        found = [line for line in self.validations if self.run.train.monitor in line]
        return found[checkpoints.best(found, self.run.train.monitor)] if found else None


def kind(path: str) -> Kind | None:
    """What a folder holds; None for anything else."""
    names = set(storage.list_folder(path)) if storage.is_folder(path) else set()
    if "run.yaml" in names:
        return "run" if "prepared.json" in names else "search"
    if "model.json" in names:
        return "bundle"
    return "prepared" if shards.MANIFEST in names else None


def read_run(folder: str) -> RunState:
    """A run folder as it stands. Raises `ConfigError` for a run file of another version."""
    folder = storage.absolute(folder)
    run = run_config.load(storage.join(folder, "run.yaml"))
    path = storage.join(folder, "summary.json")
    summary = dict(storage.read_json(path)) if storage.exists(path) else None
    began = storage.read_json(storage.join(folder, "prepared.json"))
    beside = storage.join(folder.rpartition("/")[0], "prepared", began["fingerprint"])
    prepared, manifest = None, None
    for place in (summary["prepared"] if summary else began["folder"], began["folder"], beside):
        if storage.exists(storage.join(place, shards.MANIFEST)):
            prepared = place
            try:
                manifest = shards.load_manifest(place)
            except DataError:  # of another version: the run can be told of without it
                prepared = None
            break
    lines = metric_logger.read(storage.join(folder, "metrics.jsonl"))
    return RunState(folder, run, summary, lines, prepared, manifest, len(attempts.read(folder)))

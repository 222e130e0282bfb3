"""Kind of a folder, by the files in it, and the state of a run folder."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from txclf.artifacts import attempts, checkpoints
from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.core.errors import DataError
from txclf.data import shards

Kind = Literal["run", "search", "bundle", "prepared"]


class RunState(NamedTuple):
    """State of a run, finished or not, as its folder records it."""

    folder: str
    run: RunConfig
    summary: dict[str, Any] | None
    """Contents of `summary.json`; None before the run is finished."""
    log: list[dict[str, float]]
    """Lines of `metrics.jsonl`."""
    prepared: str | None
    """Folder of the prepared data; None if it was removed."""
    manifest: shards.Manifest | None
    """Manifest of the prepared data; None without the data."""
    attempts: int
    """Number of attempts to train."""

    @property
    def validations(self) -> list[dict[str, float]]:
        """Lines of the log with a validation."""
        return [line for line in self.log if "valid_loss" in line]

    @property
    def step(self) -> int:
        """Last logged step; 0 without a log."""
        return int(self.log[-1]["step"]) if self.log else 0

    @property
    def epochs(self) -> float:
        """Epochs until the last logged step."""
        return float(self.log[-1]["epoch"]) if self.log else 0.0

    @property
    def has_test(self) -> bool:
        """True if the run has a test split."""
        return self.manifest is not None and "test" in self.manifest.splits

    @property
    def best(self) -> dict[str, float] | None:
        """Best validation by `train.monitor`; None without one, or if the model was trained on the validation rows."""
        if self.run.train.train_on_valid:
            return None
        validations = [line for line in self.validations if self.run.train.monitor in line]
        return validations[checkpoints.best(validations, self.run.train.monitor)] if validations else None

    @property
    def scores(self) -> dict[str, float]:
        """Validation metrics of the bundle, or of the best validation of a run that is not finished; empty without."""
        if self.run.train.train_on_valid:  # of which summaries of earlier versions have scores
            return {}
        found = self.summary["best"] if self.summary else self.best or {}
        return {name: value for name, value in found.items() if name.startswith("valid_") and name != "valid_rows"}


def kind(path: str) -> Kind | None:
    """Return the kind of a folder, or None for any other path."""
    names = set(storage.list_folder(path)) if storage.is_folder(path) else set()
    if "run.yaml" in names:
        return "run" if "prepared.json" in names else "search"
    if "model.json" in names:
        return "bundle"
    return "prepared" if shards.MANIFEST in names else None


def prepared_folder(folder: str, copied_to: str | None = None) -> str | None:
    """Return the prepared data of a run folder, or their copy if both were copied together; None if both are gone.

    The copy is in `copied_to`, by default the folder that contains the run.
    """
    recorded = storage.read_object(storage.join(folder, "prepared.json"), "fingerprint", "folder")
    copy = storage.join(copied_to or storage.folder_of(folder), "prepared", recorded["fingerprint"])
    places = (recorded["folder"], copy)
    return next((place for place in places if storage.exists(storage.join(place, shards.MANIFEST))), None)


def read_run(folder: str) -> RunState:
    """Return the state of a run folder. Raises `ConfigError` for a run file of another version."""
    folder = storage.absolute(folder)
    run = run_config.load(storage.join(folder, "run.yaml"))
    path = storage.join(folder, "summary.json")
    summary = storage.read_object(path, "prepared") if storage.exists(path) else None
    prepared, manifest = prepared_folder(folder), None
    if prepared is not None:
        try:
            manifest = shards.load_manifest(prepared)
        except DataError:  # prepared by another version; the run can be described without it
            prepared = None
    from txclf.artifacts import metric_logger  # and TensorBoard

    lines = metric_logger.read(storage.join(folder, "metrics.jsonl"))
    return RunState(folder, run, summary, lines, prepared, manifest, len(attempts.read(folder)))

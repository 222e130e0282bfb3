"""The start of a run's folder, and its training in this process or by workers of Ray Train."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from txclf.config import run_config
from txclf.core import lease, storage
from txclf.core.lease import Holding
from txclf.training.job import DistributedContext, WorkerConfig
from txclf.training.progress import Interrupted, Progress
from txclf.training.run_stats import RunStats

PREPARED = "prepared.json"
VECTORS = "vectors.json"

Report = Callable[[Progress], bool]
"""Takes the progress and returns True to stop the run."""


def begin(config: WorkerConfig) -> None:
    """Write the files that make the folder a run's, after all checks; a resumed run has them.

    A run that has begun before its sidecars were known records them.
    """
    folder = config.run.run_folder
    sidecars = [sidecar.model_dump() for sidecar in config.sidecars]
    if storage.exists(storage.join(folder, "run.yaml")):
        path = storage.join(folder, PREPARED)
        recorded = storage.read_object(path)
        if sidecars and "sidecars" not in recorded:
            storage.write_json(path, {**recorded, "sidecars": sidecars})
        return
    data: dict[str, Any] = {"folder": config.prepared, "fingerprint": config.manifest().fingerprint}
    if config.encoder:
        data["encoder"] = config.encoder
    if sidecars:
        data["sidecars"] = sidecars
    storage.write_json(storage.join(folder, PREPARED), data)
    if config.vectors:
        storage.write_json(storage.join(folder, VECTORS), config.vectors.model_dump())
    storage.write_bytes(storage.join(folder, "run.yaml"), run_config.dump(config.run).encode())


@contextmanager
def alone(folder: str, report: Report, notes: Sequence[str], work: str) -> Iterator[Holding]:
    """Hold a folder that several runs share while the block runs, after waiting for the run that holds it.

    `work` names what that run does, for the note. Raises `Interrupted` if `report` asked for a stop meanwhile.
    """

    def wait(note: str) -> None:
        if report(Progress("preparing", notes=[*notes, note])):
            raise Interrupted

    with lease.held(folder, wait, math.inf, work=work) as holding:
        yield holding


def fit(config: WorkerConfig, report: Report, notes: list[str]) -> RunStats:
    """Train from the last checkpoint until done and return the measurements. With workers, Ray must be connected.

    Raises `Interrupted` if `report` asked for a stop.
    """
    compute = config.run.compute
    if compute.on_ray:
        from txclf import ray_cluster

        ray_cluster.require(compute)
        notes = [*notes, *filter(None, [ray_cluster.unused_gpus(compute)])]
    notes = [*notes, describe_data(config)]
    report(Progress(notes=notes))
    begin(config)
    if compute.on_ray:
        from txclf.training.distributed import ray_trainer

        return ray_trainer.fit(config, report, notes)
    from txclf.training import worker  # and Lightning

    def show(progress: Progress) -> bool:
        return report(replace(progress, notes=[*notes, *progress.notes]))

    return worker.fit(config, None, show, DistributedContext())


def describe_data(config: WorkerConfig) -> str:
    """Describe the size of the training data and the shuffle windows of an epoch."""
    split, windows = config.manifest().splits["train"], config.train_reader().windows.windows_per_epoch
    size = f"{split.rows:,} rows, {split.tokens + split.target_tokens:,} tokens"
    return f"training data: {size}, shuffled {'as a whole' if windows == 1 else f'in {windows:,} windows an epoch'}"

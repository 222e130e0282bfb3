"""`txclf train`: prepared data to a run folder with a model bundle.

    run folder/run.yaml         the resolved run file, written before the first step
               prepared.json    where the prepared data lie
               vectors.json     what `model.word_vectors` gave to the vocabulary
               attempts.jsonl   a line for each time that workers began
               metrics.jsonl    a line per log interval and per validation
               checkpoints/     the best few and the last
               tensorboard/
               model/           the bundle, made from the best checkpoint
               summary.json     written last: it marks the run as finished

One worker function serves a run in this process (`compute.workers: 0`) and the workers of Ray Train: they differ only
in where the rows come from and where the progress goes.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from txclf._version import __version__
from txclf.artifacts import attempts, checkpoints, trackers
from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.core.errors import ConfigError
from txclf.data import disk_cache, shards, word_vectors
from txclf.data.batches import Rows
from txclf.data.word_vectors import Coverage
from txclf.inference import bundle
from txclf.inference.metadata import Calibration
from txclf.training.class_weights import label_weights
from txclf.training.job import DistributedContext, WorkerConfig
from txclf.training.precision import choose_precision, uses_gpu
from txclf.training.progress import Progress

if TYPE_CHECKING:
    from txclf.training.checkpoint_selection import Chosen

SUMMARY = "summary.json"
PREPARED = "prepared.json"
VECTORS = "vectors.json"

Report = Callable[[Progress], bool]
"""Takes the progress, says whether to stop."""


class RunSummary(BaseModel):
    """What a finished run was; `summary.json`."""

    model_config = ConfigDict(frozen=True)

    version: str
    prepared: str
    """The prepared folder it learned from."""
    workers: int
    """0 = in this process; of an elastic run those of its last attempt."""
    device: str
    precision: str
    parameters: int
    best_step: int
    best: dict[str, float]
    """Metrics of the validation that the bundle comes from."""
    averaged: list[int] = []
    """Steps of the checkpoints whose mean was bundled; empty when it was the best alone."""
    calibration: Calibration | None = None
    """Of the bundle; None without `train.calibrate`, or when the validation rows were learned from."""
    thresholds: dict[str, float] | None = None
    """Of a `multilabel` bundle; None with `train.train_on_valid`: 0.5 for all."""
    vectors: Coverage | None = None
    """What `model.word_vectors` gave to the vocabulary."""
    steps: int
    epochs: float
    rows_seen: int
    steps_skipped: int
    """Steps whose gradient was not finite."""
    steps_repeated: int
    """Logged steps trained again after a failure or a stop."""
    attempts: int
    """Times that workers began: 1 for a run that was never stopped."""
    stopped_early: bool
    padding_share: float
    data_share: float
    """Share of the time of the steps spent waiting for data."""
    tokens_per_second: float
    """Real tokens over the seconds of steps and data."""
    mfu: float | None = None
    """Share of `matrix_rate` that the model's own operations reached over the same seconds (`txclf.training.mfu`)."""
    matrix_rate: float | None = None
    """Floating-point operations a second of large matrix products, measured on a worker's device in this precision."""
    seconds: dict[str, float]
    """`startup`, `data`, `steps`, `validation`, `checkpoints`, `total`, of the last attempt of the run."""


def check_folder(run: RunConfig, resume: bool) -> RunSummary | None:
    """Refuses a run folder that is taken, or not there to resume; a finished run's summary when resumed."""
    trackers.require(run)
    folder = run.run_folder
    saved = storage.join(folder, "run.yaml")
    if not storage.exists(saved):
        word_vectors.require(run.model.word_vectors)
        if resume:
            raise ConfigError(f"`{folder}`: no run to resume: start it without --resume")
        storage.require_writable(folder)
        return None
    if not storage.exists(storage.join(folder, PREPARED)):
        raise ConfigError(f"`{folder}` holds a search of `txclf tune`: choose another `name`")
    if not resume:
        raise ConfigError(f"`{folder}` is there already: go on with --resume, or choose another `name`")
    was, wanted = (_kept_by_resume(one) for one in (run_config.load(saved), run))
    changed = [key for key in was if was[key] != wanted[key]]
    if changed:
        names = ", ".join(f"`{key}`" for key in changed)
        raise ConfigError(f"`{saved}` differs from what is asked in {names}: a resumed run keeps its settings")
    summary = storage.join(folder, SUMMARY)
    return RunSummary.model_validate(storage.read_json(summary)) if storage.exists(summary) else None


def _kept_by_resume(run: RunConfig) -> dict[str, Any]:
    """The settings that a resumed run must keep: all but where it runs and what it does about failures."""
    sections = run.model_dump(include={"seed", "task", "data", "tokenizer", "model", "train"})
    free = {
        "data": ["ingest"],
        "train": ["checkpoint_every", "on_nan", "stall_timeout_s", "log_every_steps", "trackers"],
    }
    for section, keys in free.items():
        for key in keys:
            del sections[section][key]
    return sections


def check_fit(run: RunConfig, manifest: shards.Manifest) -> None:
    """Raises `ConfigError` when the batches cannot be made from these data on these workers."""
    trackers.require(run)
    rows = manifest.splits["train"].rows
    size, world, parts = run.train.batch_size, max(1, run.compute.max_workers), run.train.micro_batches
    if size > rows:
        raise ConfigError(f"`train.batch_size` ({size}) is larger than the training split ({rows} rows)")
    if size < world * parts:
        raise ConfigError(
            f"`train.batch_size` ({size}) is less than `compute.workers` x `train.micro_batches` ({world * parts})"
        )
    if not (run.compute.on_ray and uses_gpu(run.compute)):  # a worker's GPU may not be seen from here
        choose_precision(run.train.precision, uses_gpu(run.compute))
    if run.train.precision == "fp16" and run.compute.strategy == "fsdp":
        raise ConfigError("`train.precision: fp16` and `compute.strategy: fsdp` do not go together: take bf16")
    label_weights(run, manifest.splits["train"])


def train(
    run: RunConfig,
    prepared: str,
    report: Report = lambda progress: False,
    started: float | None = None,
    share: int = 1,
) -> RunSummary:
    """Trains a run on prepared data, going on from its last checkpoint if there is one, and makes the bundle.

    `report` is told of the progress a few times a second, and says whether to stop. `share`: so many runs in a process
    of their own share this machine's memory.

    Raises `Interrupted` when `report` asked for a stop; the checkpoint is saved then.
    """
    manifest = shards.load_manifest(prepared)
    began = _began_with(run)
    if began and began["fingerprint"] != manifest.fingerprint:
        raise ConfigError(f"`{run.run_folder}` began with `{began['folder']}`; the data changed since: start a new run")
    coverage = _vectors(run, prepared)
    job = WorkerConfig(run, prepared, time.time() if started is None else started, uuid.uuid4().hex, coverage)
    manifest = job.manifest()
    check_fit(run, manifest)
    notes = coverage.describe() if coverage else []
    fit = _fit_on_ray if run.compute.on_ray else partial(_fit_here, share=share)
    outcome = fit(job, manifest, report, notes)
    return _finish(job, outcome)


def _vectors(run: RunConfig, prepared: str) -> Coverage | None:
    """Return the vectors of `model.word_vectors` for the prepared vocabulary.

    A started run keeps its own copy, so the file may be gone.
    """
    if run.model.word_vectors is None:
        return None
    path = storage.join(run.run_folder, VECTORS)
    if _began_with(run) and storage.exists(path):
        coverage = Coverage.model_validate(storage.read_json(path))
        if storage.exists(storage.join(prepared, coverage.matrix)):
            return coverage
    return word_vectors.matched(run.model.word_vectors, run.model.hidden_size, prepared, run.seed)


def _finish(job: WorkerConfig, outcome: dict[str, Any]) -> RunSummary:
    """The bundle from the best checkpoint, then the summary, which marks the run as finished."""
    run = job.config
    saved = checkpoints.committed(storage.join(run.run_folder, "checkpoints"))
    winner = save_bundle(storage.join(run.run_folder, "model"), run, job.prepared, saved)
    begun = attempts.read(run.run_folder)
    summary = RunSummary(
        version=__version__,
        attempts=len(begun),
        steps_repeated=sum(attempt.repeated for attempt in begun),
        prepared=job.prepared,
        best_step=winner.step,
        best=winner.metrics or saved[-1].metrics,
        averaged=winner.averaged,
        calibration=winner.calibration,
        thresholds=winner.thresholds,
        vectors=job.vectors,
        **outcome,
    )
    storage.write_json(storage.join(run.run_folder, SUMMARY), summary.model_dump())
    return summary


def save_bundle(folder: str, run: RunConfig, prepared: str, saved: list[checkpoints.Checkpoint]) -> Chosen:
    """The bundle of a run on prepared data that left these checkpoints; what was chosen for it."""
    from txclf.training import checkpoint_selection  # and torchmetrics, which nothing needs before

    winner, manifest = checkpoint_selection.chosen(run, prepared, saved), shards.load_manifest(prepared)
    seen = run.train.train_on_valid
    if seen:
        manifest = shards.with_valid(manifest)
    bundle.save(
        folder,
        run,
        winner.weights,
        labels=manifest.labels,
        tokenizers=shards.tokenizers(prepared),
        metrics=winner.metrics,
        rows={split: part.rows for split, part in manifest.splits.items() if not (seen and split == "valid")},
        calibration=winner.calibration,
        thresholds=winner.thresholds,
    )
    return winner


def recorded_data(run: RunConfig) -> str | None:
    """The prepared folder that a run began with, or its copy where run and data were copied elsewhere together.

    None for a new run, or when the data must be prepared again.
    """
    began = _began_with(run)
    if not began:
        return None
    places = began["folder"], storage.join(storage.absolute(run.storage), "prepared", began["fingerprint"])
    return next((place for place in places if storage.exists(storage.join(place, shards.MANIFEST))), None)


def _began_with(run: RunConfig) -> dict[str, str] | None:
    """`prepared.json`: the prepared folder that a run began with, and its fingerprint."""
    path = storage.join(run.run_folder, PREPARED)
    return dict(storage.read_json(path)) if storage.exists(path) else None


def _begin(job: WorkerConfig, manifest: shards.Manifest) -> None:
    """Writes what makes the folder a run's, after all checks; a resumed run has it already."""
    folder = job.config.run_folder
    if not storage.exists(storage.join(folder, "run.yaml")):
        storage.write_json(
            storage.join(folder, PREPARED), {"folder": job.prepared, "fingerprint": manifest.fingerprint}
        )
        if job.vectors:
            storage.write_json(storage.join(folder, VECTORS), job.vectors.model_dump())
        storage.write_bytes(storage.join(folder, "run.yaml"), run_config.dump(job.config).encode())


def _fit_here(
    job: WorkerConfig, manifest: shards.Manifest, report: Report, notes: list[str], share: int = 1
) -> dict[str, Any]:
    from txclf.training import worker  # and Lightning

    streams, note = disk_cache.streams(job.config.data.ingest, manifest, disk_cache.machine_memory() // 4 // share)
    report(Progress(notes=[*notes, note]))
    _begin(job, manifest)
    place = DistributedContext()

    def rows(split: str) -> Rows:
        if streams:
            return worker.streamed_rows(job, split, place.pulse)
        return job.rows([shards.read_split(job.prepared, manifest, split, job.columns)])

    return worker.fit(job, rows, report, place)


def _fit_on_ray(job: WorkerConfig, manifest: shards.Manifest, report: Report, notes: list[str]) -> dict[str, Any]:
    from txclf import ray_cluster
    from txclf.training.distributed import ray_trainer

    with ray_cluster.connected(job.config.compute):
        ray_cluster.require(job.config.compute)
        streams, note = disk_cache.streams(
            job.config.data.ingest, manifest, ray_cluster.data_budget(job.config.compute)
        )
        report(Progress(notes=[*notes, note]))
        _begin(job, manifest)
        return ray_trainer.fit(job, streams, report)

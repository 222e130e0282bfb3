"""`txclf train`: prepared data to a run folder with a model bundle.

    run folder/run.yaml         resolved run file, written before the first step
               prepared.json    prepared folder and its fingerprint
               vectors.json     coverage of the vocabulary by `model.word_vectors`
               lease.json       process that works in the folder; removed when it ends
               attempts.jsonl   one line for each time that workers began
               metrics.jsonl    one line per log interval and per validation
               checkpoints/     the best few and the last
               from_scratch/    training without `train.pretrain_epochs`, to compare
               tensorboard/     the same metrics for TensorBoard
               model/           bundle, made from the best checkpoint
               summary.json     written last: it marks the run as finished

One worker function (`txclf.training.worker.fit`) serves a run in this process (`compute.workers: 0`) and the workers of
Ray Train.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import Field

from txclf._version import __version__
from txclf.artifacts import attempts, checkpoints, run_folder, trackers
from txclf.artifacts.checkpoints import Checkpoint
from txclf.config import recipes, run_config
from txclf.config.run_config import RunConfig
from txclf.core import html_table, lease, storage
from txclf.core.errors import ConfigError
from txclf.data import shards, word_vectors
from txclf.data.sidecars import Sidecar
from txclf.data.word_vectors import Coverage
from txclf.inference import bundle
from txclf.inference.metadata import Calibration
from txclf.ngrams.blend import NgramShare
from txclf.pretrained import Pretrained
from txclf.training import contrastive, distill, fitting, pretraining, row_sidecars
from txclf.training import resume as resume_rules
from txclf.training.class_weights import label_weights
from txclf.training.fitting import PREPARED, VECTORS, Report
from txclf.training.job import WorkerConfig
from txclf.training.precision import choose_precision, require_usable_gpus, uses_gpu
from txclf.training.pretraining import Pretraining
from txclf.training.progress import Interrupted, Progress
from txclf.training.run_stats import RunStats
from txclf.upstream import local_ray

if TYPE_CHECKING:
    from txclf.training.checkpoint_selection import Chosen

SUMMARY = "summary.json"


class RunSummary(RunStats):
    """Summary of a finished run; `summary.json`."""

    version: str
    """Version of txclf."""
    prepared: str
    """Prepared folder that the run was trained on."""
    best_step: int
    best: dict[str, float]
    """Validation metrics of the bundle; empty with `train.train_on_valid`."""
    averaged: list[int] = Field(default_factory=list)
    """Steps of the checkpoints whose mean was bundled; empty if one checkpoint was."""
    calibration: Calibration | None = None
    """Calibration of the bundle; None without `train.calibrate` or with `train.train_on_valid`."""
    thresholds: dict[str, float] | None = None
    """Threshold of each label of a `multilabel` bundle; None with `train.train_on_valid`: 0.5 for all."""
    ngrams: NgramShare | None = None
    """Share of the linear model on n-grams in the answers of the bundle; None for the network alone."""
    vectors: Coverage | None = None
    """Coverage of the vocabulary by `model.word_vectors`."""
    pretraining: Pretraining | None = None
    """Effect of `train.pretrain_epochs`."""
    steps_repeated: int
    """Logged steps trained again after a failure or a stop."""
    attempts: int
    """Number of times that workers began; 1 for a run that was never stopped."""
    run_folder: str | None = Field(default=None, exclude=True)
    """Run folder; not in `summary.json`."""

    @property
    def model(self) -> str:
        """Path of the bundle."""
        return storage.join(self.run_folder or "", "model")

    def _repr_html_(self) -> str:
        """Return the summary as a table for a notebook."""
        facts: list[tuple[str, object]] = [*self.best.items(), ("best step", self.best_step)]
        facts += [("steps", self.steps), ("epochs", self.epochs), ("seconds", self.seconds.get("total"))]
        facts += [("tokens per second", self.tokens_per_second), ("parameters", self.parameters)]
        if self.calibration:
            facts.append(("temperature", self.calibration.temperature))
        if self.ngrams:
            facts.append(("share of the n-gram model", self.ngrams.weight))
        return html_table.table("Run", [*facts, ("device", self.device), ("precision", self.precision)])


def check_folder(run: RunConfig, resume: bool, *, is_refit: bool = False) -> RunSummary | None:
    """Check that a run may start or resume in its folder; return the summary of a finished run that is resumed.

    Return None for a finished run that is resumed for more epochs. `is_refit` is True for the winner of a search.

    Raises `ConfigError` if the folder is taken, is missing, or began with other settings, and for GPUs of no use.
    """
    require_usable_gpus(run.compute)
    trackers.require(run)
    distill.require_teacher(run, pretrains=is_refit)
    folder = run.run_folder
    saved = storage.join(folder, "run.yaml")
    if not storage.exists(saved):
        word_vectors.require(run.model.word_vectors, run.tokenizer.kind)
        if resume:
            raise ConfigError(f"`{folder}`: no run to resume. Start it without --resume.")
        storage.require_writable(folder)
        return None
    if not storage.exists(storage.join(folder, PREPARED)):
        raise ConfigError(f"`{folder}` holds a search of `txclf tune`. Choose another `name`.")
    if not resume:
        raise ConfigError(f"`{folder}` exists already. Pass --resume to continue it, or choose another `name`.")
    began = run_config.load(saved)
    resume_rules.require_kept(run, began, saved)
    path = storage.join(folder, SUMMARY)
    summary = storage.read_as(path, RunSummary) if storage.exists(path) else None
    if summary:
        summary = summary.model_copy(update={"run_folder": folder})
    if summary and resume_rules.extends(run, began):
        resume_rules.require_extendable(summary.model_dump())
        return None
    return summary


def check_fit(run: RunConfig, manifest: shards.Manifest) -> None:
    """Raise `ConfigError` if the batches cannot be made from these data on these workers."""
    trackers.require(run)
    rows = manifest.splits["train"].rows
    size, world, parts = run.train.batch_size, max(1, run.compute.max_workers), run.train.micro_batches
    if size > rows:
        raise ConfigError(
            f"`train.batch_size` ({size}) is larger than the training split ({rows} rows). Set a smaller one."
        )
    if size < world * parts:
        raise ConfigError(
            f"`train.batch_size` ({size}) is less than `compute.workers` x `train.micro_batches` ({world * parts}). "
            "Raise it, or lower one of them."
        )
    require_usable_gpus(run.compute)
    if not (run.compute.on_ray and uses_gpu(run.compute)):  # a worker's GPU may not be seen from here
        choose_precision(run.train.precision, uses_gpu(run.compute))
    if run.train.precision == "fp16" and run.compute.strategy == "fsdp":
        raise ConfigError(
            "`train.precision: fp16` and `compute.strategy: fsdp` do not go together. Set `train.precision: bf16`."
        )
    label_weights(run, manifest.splits["train"])


def train(
    run: RunConfig,
    prepared: str,
    report: Report = lambda progress: False,
    started: float | None = None,
    patience_s: float = 0.0,
    is_trial: bool = False,
    encoder: Pretrained | None = None,
) -> RunSummary:
    """Train a run on prepared data, from its last checkpoint if there is one, and write the bundle.

    `report` receives the progress a few times a second; if it returns True, a checkpoint is saved and `Interrupted` is
    raised. `started` is the wall-clock time at which the command began. `patience_s` is how long another driver of the
    run may take to end. A trial of a search is not compared with the same model without pre-training.
    `encoder` is the pretrained model, if it is stored already.

    Raises `ConfigError` if the data changed since the run began, or if another driver works in the run folder.
    """
    manifest = shards.load_manifest(prepared)
    began = has_begun(run, manifest)
    coverage = _vectors(run, prepared)
    rows, unsettled = manifest.splits["train"].rows, run
    run, stored = _settled(run, manifest, encoder)
    config = WorkerConfig(run, prepared, time.time() if started is None else started, coverage, stored)
    check_fit(run, config.manifest())
    notes = coverage.describe() if coverage else []
    if chosen := recipes.described(unsettled, run, rows):
        notes.append(chosen)

    last = Progress()

    def remembered(progress: Progress) -> bool:
        nonlocal last
        last = progress
        return report(progress)

    def wait(note: str) -> None:
        if note not in notes:
            notes.append(note)
        if report(Progress(notes=notes)):
            raise Interrupted

    with lease.held(run.run_folder, wait, patience_s) as holding:
        if not began and storage.exists(storage.join(run.run_folder, "run.yaml")):
            raise ConfigError(f"`{run.run_folder}`: another process started this run meanwhile. Pass --resume.")
        if began:
            resume_rules.extend(run)
        with _connected(run):
            config = contrastive.ready(config, report, notes)
            config = _with_sidecars(config, report, notes)
            config = pretraining.ready(config, report, notes)
            stats = fitting.fit(config, remembered, notes)
            saved, effect = checkpoints.committed(storage.join(run.run_folder, "checkpoints")), None
            if config.pretrained_encoder and (is_trial or run.train.train_on_valid):
                effect = pretraining.result(config)
            elif config.pretrained_encoder:
                stats, saved, effect = pretraining.compared(config, stats, remembered, notes)
            report(replace(last, stage="bundling", step=stats.steps, total_steps=stats.steps))
            return _finish(config, stats, saved, effect, holding)


def _connected(run: RunConfig) -> AbstractContextManager[None]:
    """Return a context in which Ray is connected, if the run needs it."""
    if not run.compute.on_ray:
        return nullcontext()
    from txclf import ray_cluster

    return ray_cluster.connected(run.compute)


def _vectors(run: RunConfig, prepared: str) -> Coverage | None:
    """Return the vectors of `model.word_vectors` for the prepared vocabulary.

    A started run keeps its own copy, so the file may be gone.
    """
    if run.model.word_vectors is None:
        return None
    path = storage.join(run.run_folder, VECTORS)
    if _began_with(run) and storage.exists(path):
        coverage = storage.read_as(path, Coverage)
        if storage.exists(storage.join(prepared, coverage.matrix)):
            return coverage
    return word_vectors.matched(run, prepared)


def _with_sidecars(config: WorkerConfig, report: Report, notes: list[str]) -> WorkerConfig:
    """Return the configuration with the sidecars of the run.

    The run can be stopped and resumed while they are computed.
    """
    recorded = (_began_with(config.run) or {}).get("sidecars", [])
    path = storage.join(config.run.run_folder, PREPARED)
    began = [storage.as_model(sidecar, Sidecar, path) for sidecar in recorded]
    return row_sidecars.ready(config, began, begin=fitting.begin, report=report, notes=notes)


def _settled(run: RunConfig, manifest: shards.Manifest, encoder: Pretrained | None) -> tuple[RunConfig, str | None]:
    """Return a run with all its settings, and the folder of its pretrained model.

    A started run keeps its own, so the original model may be gone.
    """
    recorded = recorded_encoder(run)
    if _began_with(run):
        run = resume_rules.as_resumed(run, run_config.load(storage.join(run.run_folder, "run.yaml")))
        if recorded is None or storage.exists(recorded):
            return run, recorded
    if run.model.pretrained is None:
        return recipes.with_recipe(run, manifest.splits["train"].rows, len(manifest.labels)), None
    from txclf.training import pretrained_network  # and Transformers

    return pretrained_network.settled(run, manifest, encoder)


def _finish(
    config: WorkerConfig,
    stats: RunStats,
    saved: list[Checkpoint],
    effect: Pretraining | None,
    holding: lease.Holding,
) -> RunSummary:
    """Write the bundle from the best checkpoint, then the summary, which marks the run as finished."""
    run = config.run
    holding.require()
    folder = storage.join(run.run_folder, "model")
    winner = save_bundle(folder, run, config.prepared, saved, encoder=config.encoder, on_ray=run.compute.on_ray)
    begun = attempts.read(run.run_folder)
    chosen = {
        "version": __version__,
        "prepared": config.prepared,
        "best_step": winner.step,
        "best": winner.metrics,
        "averaged": winner.averaged,
        "calibration": winner.calibration,
        "thresholds": winner.thresholds,
        "ngrams": winner.blend and winner.blend.share,
        "vectors": config.vectors,
        "pretraining": effect,
        "steps_repeated": sum(attempt.repeated for attempt in begun),
        "attempts": len(begun),
    }
    summary = RunSummary.model_validate(dict(stats) | chosen | {"run_folder": run.run_folder})
    holding.require()
    storage.write_json(storage.join(run.run_folder, SUMMARY), summary.model_dump())
    return summary


def save_bundle(
    folder: str,
    run: RunConfig,
    prepared: str,
    saved: list[Checkpoint],
    *,
    encoder: str | None,
    on_ray: bool,
) -> Chosen:
    """Write the bundle of a run from its checkpoints; return what was chosen for it, without the weights.

    `encoder` is the folder of the stored pretrained model. With `on_ray`, on a cluster, a task with the resources of a
    worker does it, because the driver may have no GPU. Ray must be connected.
    """
    if not on_ray or local_ray.is_joined():
        return _write_bundle(folder, run, prepared, saved, encoder)
    from txclf.training.distributed import worker_task

    return worker_task.call(run.compute, _write_bundle, folder, run, prepared, saved, encoder)


def _write_bundle(folder: str, run: RunConfig, prepared: str, saved: list[Checkpoint], encoder: str | None) -> Chosen:
    from txclf.training import checkpoint_selection  # and torchmetrics, which nothing needs before

    manifest = shards.load_manifest(prepared)
    files = None
    if encoder is not None:
        from txclf.training import pretrained_network

        files = pretrained_network.bundle_files(encoder, run, manifest)
    winner = checkpoint_selection.chosen(run, prepared, saved, files)
    seen = run.train.train_on_valid
    if seen:
        manifest = shards.with_rows_of(manifest, "valid")
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
        conformal=winner.conformal,
        special=manifest.special_tokens,
        transformers_files=files,
        blend=winner.blend,
    )
    return winner._replace(weights={})


def recorded_data(run: RunConfig, copied_to: str | None = None) -> str | None:
    """Return the prepared folder that a run began with, or its copy if run and data were copied together.

    Return None for a new run, or if the data must be prepared again. `copied_to` is as for `prepared_folder`.
    """
    return run_folder.prepared_folder(run.run_folder, copied_to) if _began_with(run) else None


def has_begun(run: RunConfig, manifest: shards.Manifest) -> bool:
    """Return True if a run has begun. Raises `ConfigError` if it began with other data than those of the manifest."""
    began = _began_with(run)
    if began and began["fingerprint"] != manifest.fingerprint:
        raise ConfigError(f"`{run.run_folder}` began with `{began['folder']}`, and the data changed. Start a new run.")
    return began is not None


def recorded_encoder(run: RunConfig) -> str | None:
    """Return the folder of the stored pretrained model that a run began with; None for a run from scratch."""
    return (_began_with(run) or {}).get("encoder")


def _began_with(run: RunConfig) -> dict[str, Any] | None:
    """Return `prepared.json`: what a run began with, such as its prepared folder and the fingerprint of the data.

    Return None for a run whose `run.yaml`, which is written after it, is missing.
    """
    path = storage.join(run.run_folder, PREPARED)
    began = storage.exists(storage.join(run.run_folder, "run.yaml")) and storage.exists(path)
    return storage.read_object(path) if began else None

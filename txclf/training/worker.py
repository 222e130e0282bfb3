"""The worker function: what each process of a run does, alone or as a worker of Ray Train.

Where the rows come from and where the progress goes are its arguments; all else is the same in both.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyarrow as pa
import pytorch_lightning as pl
import torch

from txclf.artifacts import checkpoints
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.data import disk_cache, shards, word_vectors
from txclf.data import sampler as plans
from txclf.data.batches import Batch, PairBatch, Rows, TokenRows
from txclf.data.sampler import BatchSampler
from txclf.training import mfu, sharded_tensors
from txclf.training.callbacks import Recorder
from txclf.training.class_weights import label_weights
from txclf.training.job import DistributedContext, WorkerConfig
from txclf.training.module import ClassifierModule, TrainingModule
from txclf.training.module_multilabel import MultilabelModule
from txclf.training.module_seq2seq import Seq2SeqModule
from txclf.training.precision import Precision, choose_precision, uses_gpu
from txclf.training.progress import Heartbeat, Progress
from txclf.training.step_schedule import StepSchedule, exhausted
from txclf.training.timing import Clock


class TrainBatches:
    """An iterable whose each pass gives this rank's batches from the step reached to the next validation."""

    def __init__(
        self, rows: Rows, run: RunConfig, place: DistributedContext, recorder: Recorder, target_vocab: int
    ) -> None:
        self.rows, self.run, self.place, self.recorder = rows, run, place, recorder
        self.target_vocab = target_vocab

    def __iter__(self) -> Iterator[dict[str, Any]]:
        run, plan, reached = self.run, self.recorder.plan, self.recorder.step
        for step in range(reached, self.recorder.course.next_validation(reached)):
            rows = plan.rows(step)
            step_size = self.rows.step_size(rows)
            for part in plans.rank_parts(rows, self.place.rank, self.place.world_size, run.train.micro_batches):
                start = time.perf_counter()
                batch = self.rows.batch(part, run.train.token_dropout, plan.key(plan.epoch))
                self.recorder.clock.flops += mfu.training_flops(run.model, run.train, batch, self.target_vocab)
                self.recorder.clock.data += time.perf_counter() - start
                self.place.pulse.waited = self.recorder.clock.data
                yield {**batch, "step_size": step_size}


class ScoringBatches:
    """This rank's share of the validation rows, each row once over all ranks."""

    def __init__(self, rows: Rows, batch_size: int, place: DistributedContext) -> None:
        self.rows, self.batch_size, self.place = rows, batch_size, place

    def __iter__(self) -> Iterator[Batch | PairBatch]:
        rank, world_size = self.place.rank, self.place.world_size
        for part in plans.scoring_batches(self.rows.lengths, self.batch_size, rank, world_size, self.rows.costs):
            yield self.rows.batch(part)


def streamed_rows(
    job: WorkerConfig, split: str, pulse: Heartbeat, first: bool = True, barrier: Callable[[], None] = lambda: None
) -> Rows:
    """The rows of a split on this node's disk, read from its shards by the first worker there."""
    part = job.manifest().splits[split]

    def tables() -> Iterator[pa.Table]:
        for shard in part.shards:
            for table in shards.read_groups(job.prepared, shard, job.columns):
                pulse.beat("reading data", 0)
                yield table

    folder = os.path.join(tempfile.gettempdir(), f"txclf-{job.id}-{split}")
    size = part.tokens + part.target_tokens
    return disk_cache.spooled(tables, folder, size, job.columns, first, barrier, job.layout())


def fit(
    job: WorkerConfig, rows: Callable[[str], Rows], report: Callable[[Progress], bool], place: DistributedContext
) -> dict[str, Any]:
    """Trains until done, stopped early or interrupted, from the last committed checkpoint; what it did, as plain data.

    `rows(split)` gives the rows of a split. Raises `Interrupted` on every rank when `report` asked for a stop.
    """
    run = job.config
    manifest = job.manifest()
    train_rows, valid_rows = rows("train"), rows("valid")
    labels = None
    if run.train.sampling == "balanced" and isinstance(train_rows, TokenRows):
        labels = train_rows.labels
    shortened = None
    if run.train.token_dropout and isinstance(train_rows, TokenRows):
        shortened = partial(train_rows.kept_lengths, run.train.token_dropout)
    plan = BatchSampler(
        train_rows.lengths,
        run.train.batch_size,
        bucket_batches=run.train.bucket_batches,
        seed=run.seed,
        labels=labels,
        lengths_of=shortened,
    )
    course = StepSchedule(plan.steps_per_epoch, run.train.epochs, run.train.eval_every, run.train.checkpoint_every)
    saved = checkpoints.committed(storage.join(run.run_folder, "checkpoints"))
    state: dict[str, Any] = checkpoints.load(saved[-1]) if saved else {"step": 0, "history": []}
    clock = Clock()
    recorder = Recorder(run, course, plan, state, clock, place.pulse, report)
    torch.manual_seed(run.seed)  # the same first weights on every rank
    module: TrainingModule
    if run.task == "seq2seq":
        sizes = (manifest.vocab_size, manifest.target_vocab_size)
        module = Seq2SeqModule(run, *sizes, course.total_steps, state["step"], place.world_size)
    else:
        kind = MultilabelModule if run.task == "multilabel" else ClassifierModule
        weights = label_weights(run, manifest.splits["train"])
        sizes = (manifest.vocab_size, len(manifest.labels))
        # Data prepared before there were segments do not tell columns apart.
        segments = 0 if manifest.separator_id is None else run.num_segments
        module = kind(run, *sizes, weights, course.total_steps, state["step"], place.world_size, segments)
        if job.vectors:
            matrix, found = word_vectors.load(job.prepared, job.vectors.matrix)
            module.begin_with(matrix, found if run.model.freeze_word_vectors else None)
    if "model" in state:
        module.model.load_state_dict(state["model"])
    train_batches = TrainBatches(train_rows, run, place, recorder, manifest.target_vocab_size)
    precision, _ = choose_precision(run.train.precision, uses_gpu(run.compute))
    with _quiet():
        trainer = _trainer(run, place, precision, [recorder, *([Restore(state)] if "model" in state else [])])
    device = trainer.strategy.root_device
    trained = time.time()
    if state["step"] < course.total_steps and not exhausted(state["history"], run.train):
        with _quiet():
            trainer.fit(module, train_batches, ScoringBatches(valid_rows, run.train.batch_size, place))
    ended = time.time()
    worked = clock.steps + clock.data
    matrix_rate = mfu.matrix_rate(device, precision) if worked else None
    return {
        "workers": place.world_size if run.compute.on_ray else 0,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "precision": precision,
        "parameters": sum(parameter.numel() for parameter in module.model.parameters()),
        "steps": recorder.step,
        "epochs": course.epoch(recorder.step),
        "rows_seen": recorder.step * run.train.batch_size,
        "steps_skipped": recorder.skipped,
        "stopped_early": recorder.step < course.total_steps,
        "padding_share": _padding_share(train_rows, plan, run, place),
        "data_share": clock.data / worked if worked else 0.0,
        "tokens_per_second": clock.tokens * place.world_size / worked if worked else 0.0,
        "mfu": clock.flops / worked / matrix_rate if matrix_rate else None,
        "matrix_rate": matrix_rate,
        "seconds": {
            "startup": (clock.first_step or trained) - job.started,
            "data": clock.data,
            "steps": clock.steps,
            "validation": clock.validation,
            "checkpoints": clock.checkpoints,
            "total": ended - job.started,
        },
    }


def _trainer(
    run: RunConfig, place: DistributedContext, precision: Precision, callbacks: list[pl.Callback]
) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="auto" if uses_gpu(run.compute) else "cpu",
        devices="auto" if place.world_size > 1 else 1,
        strategy=place.strategy,
        plugins=list(place.plugins),
        precision=precision,
        max_epochs=-1,  # the recorder stops it: an epoch of Lightning's ends in a validation
        accumulate_grad_batches=run.train.micro_batches,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    # Signals are the driver's business: Lightning's own handler would end the process before a checkpoint is saved.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


class Restore(pl.Callback):
    """Puts the optimizer and the gradient scaler back where a checkpoint left them."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        optimizer = trainer.optimizers[0]
        rates = [group["lr"] for group in optimizer.param_groups]  # the schedule set them for this step
        saved = self.state["optimizer"]
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for number, values in saved["state"].items():
            for name, value in values.items():
                values[name] = sharded_tensors.like(value, parameters[number])
        optimizer.load_state_dict(saved)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        trainer.precision_plugin.load_state_dict(self.state["scaler"])


def _padding_share(rows: Rows, plan: BatchSampler, run: RunConfig, place: DistributedContext) -> float:
    """Of the first steps of the first epoch."""
    plan.rows(0)
    return rows.padding_share(plan.batches[:1000], place.world_size, run.train.micro_batches, plan.epoch_lengths)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences Lightning's hints that do not hold here: the loaders are plain iterables without worker processes."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric)\b")
        try:
            yield
        finally:
            logger.setLevel(level)

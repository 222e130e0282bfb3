"""The training function of one process: the whole of a run in this process, or one worker of Ray Train.

Only the source of the rows and the receiver of the progress differ between the two.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch

from txclf import upstream
from txclf.config.run_config import RunConfig
from txclf.core import openmp, storage
from txclf.data.sampler import Ints
from txclf.data.window_reader import WindowSource
from txclf.training import mfu, module_masked, shared_checkpoint
from txclf.training.callbacks import (
    EMACallback,
    GradientGuard,
    HeartbeatCallback,
    MetricLogging,
    ProgressReport,
    StepCounter,
    StepTimer,
    Stopping,
)
from txclf.training.checkpoint_callbacks import CheckpointSaver, OptimizerRestore
from txclf.training.data_module import ShardsDataModule
from txclf.training.early_stopping import out_of_patience
from txclf.training.job import DistributedContext, WorkerConfig
from txclf.training.module import ClassifierModule, TrainingModule
from txclf.training.module_masked import MaskedTokenModule
from txclf.training.module_multilabel import MultilabelModule
from txclf.training.module_seq2seq import Seq2SeqModule
from txclf.training.precision import Precision, choose_precision, uses_gpu
from txclf.training.progress import Progress
from txclf.training.run_stats import RunStats
from txclf.training.step_schedule import StepSchedule
from txclf.training.train_state import TrainState

MODULES: dict[str, type[ClassifierModule | MultilabelModule | Seq2SeqModule]] = {
    "classify": ClassifierModule,
    "multilabel": MultilabelModule,
    "seq2seq": Seq2SeqModule,
}
"""The LightningModule of each task."""


def fit(
    config: WorkerConfig,
    source: WindowSource | None,
    report: Callable[[Progress], bool],
    context: DistributedContext,
) -> RunStats:
    """Train from the last committed checkpoint until done, stopped early or interrupted.

    `source` yields the rows; None reads the shards in this process.

    Raises `Interrupted` on every rank if `report` asked for a stop.
    """
    run = config.run
    data = ShardsDataModule(
        run,
        config.prepared,
        vectors=config.vectors,
        source=source,
        encoder=config.first_encoder,
        sidecars=config.sidecars,
        masked=config.masked,
    )
    last = shared_checkpoint.last_intact(storage.join(run.run_folder, "checkpoints"), context.world_size)
    checkpoint = last.state
    train = run.train
    schedule = StepSchedule(data.steps_per_epoch, train.epochs, train.eval_every, train.checkpoint_every)
    state = data.state = TrainState.from_checkpoint(schedule, checkpoint, last.notes())
    torch.manual_seed(run.seed)  # the same first weights on every rank
    kind = MaskedTokenModule if config.masked else MODULES[run.task]
    module: TrainingModule = kind.from_data(data, total_steps=schedule.total_steps, start_step=state.step)
    if checkpoint:
        module.model.load_state_dict(checkpoint["model"])
    elif config.pretrained_encoder:
        module_masked.start_from(module.model, config.pretrained_encoder)
    precision, _ = choose_precision(train.precision, uses_gpu(run.compute))
    callbacks = run_callbacks(run, state, data.reader.step_rows, checkpoint, context=context, report=report)
    with _quiet(), openmp.spinning_on_free_cpus():
        trainer = context.prepare(_trainer(run, context, precision, [*callbacks, *context.callbacks]))
        del last, checkpoint, callbacks  # the memory that the training needs
        began = time.time()
        if not state.complete and not out_of_patience(state.history, train):
            trainer.fit(module, datamodule=data)
    ended = time.time()
    return _stats(config, data, module, trainer, seconds=(began - config.started, ended - config.started))


def run_callbacks(
    run: RunConfig,
    state: TrainState,
    step_rows: Callable[[int], Ints],
    checkpoint: Mapping[str, Any] | None,
    *,
    context: DistributedContext,
    report: Callable[[Progress], bool],
) -> list[pl.Callback]:
    """Return the callbacks of a run in their order.

    `step_rows` returns the numbers of the rows of a step. `checkpoint` is the one the run resumes from, or None.
    """
    saved = checkpoint or {}
    average = EMACallback(state, run.train.ema_decay, saved.get("average")) if run.train.ema_decay else None
    guard = GradientGuard(run, state, step_rows)
    log = MetricLogging(run, state, saved.get("unlogged", {}))
    return [
        *([OptimizerRestore(checkpoint)] if checkpoint else []),
        StepCounter(run, state),
        *([average] if average else []),
        guard,
        log,
        ProgressReport(state, report),
        StepTimer(state.timing),
        CheckpointSaver(run, state, guard, average, log, context=context),
        Stopping(run, state),
        HeartbeatCallback(state, context.heartbeat),
    ]


def _trainer(
    run: RunConfig, context: DistributedContext, precision: Precision, callbacks: list[pl.Callback]
) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="auto" if uses_gpu(run.compute) else "cpu",
        devices="auto" if context.world_size > 1 else 1,
        strategy=context.strategy,
        plugins=list(context.plugins),
        precision=precision,
        max_epochs=-1,  # `Stopping` ends it, because an epoch of Lightning's lasts until a validation
        accumulate_grad_batches=run.train.micro_batches,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    upstream.keep_signal_handlers(trainer)
    return trainer


def _stats(
    config: WorkerConfig,
    data: ShardsDataModule,
    module: TrainingModule,
    trainer: pl.Trainer,
    *,
    seconds: tuple[float, float],
) -> RunStats:
    """Return the measurements of a run that ended. `seconds`: until training began, and in all."""
    run, state, device = config.run, data.state, trainer.strategy.root_device
    assert state is not None
    timing, worked = state.timing, state.timing.worked
    # Only the stats of rank 0 are kept, so the others measure nothing.
    rate = mfu.matrix_rate(device, trainer.precision) if worked and trainer.is_global_zero else None
    startup = timing.first_step - config.started if timing.first_step else seconds[0]
    return RunStats(
        workers=trainer.world_size if run.compute.on_ray else 0,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        precision=trainer.precision,
        parameters=sum(parameter.numel() for parameter in module.model.parameters()),
        steps=state.step,
        epochs=state.epoch,
        rows_seen=state.step * run.train.batch_size,
        steps_skipped=state.skipped,
        stopped_early=not state.complete,
        padding_share=1.0 - timing.tokens / timing.positions if timing.positions else 0.0,
        data_share=timing.data / worked if worked else 0.0,
        tokens_per_second=timing.tokens * trainer.world_size / worked if worked else 0.0,
        mfu=timing.flops / worked / rate if rate and timing.flops else None,
        matrix_rate=rate,
        seconds={
            "startup": startup,
            "data": timing.data,
            "steps": timing.steps,
            "validation": timing.validation,
            "checkpoints": timing.checkpoints,
            "total": seconds[1],
        },
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's hints that do not hold here: the loaders are plain iterables without worker processes."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric)\b")
        try:
            yield
        finally:
            logger.setLevel(level)

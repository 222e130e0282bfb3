"""`train.pretrain_epochs`: an encoder that learns to predict masked tokens before it learns the labels.

    <prepared>/pretraining-<hash>/encoder.safetensors   weights of the encoder, written when it has learned
                                  pretraining.json      what it learned from, and its loss; written last

The hash is of all that the weights depend on, so runs on the same prepared data, resumed runs and trials share them.
The encoder is trained as any run is: in this process or by the workers of Ray, stopped and resumed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

from pydantic import BaseModel

from txclf.artifacts import checkpoints
from txclf.artifacts.checkpoints import Checkpoint
from txclf.config.sections import Distill
from txclf.config.train import Train
from txclf.core import storage
from txclf.training import fitting, resume
from txclf.training.fitting import Report
from txclf.training.job import WorkerConfig
from txclf.training.progress import Progress
from txclf.training.run_stats import RunStats

MASKED_SHARE = 0.3
"""Share of the tokens that are masked: more than BERT's 0.15, so that an epoch teaches more (arXiv:2202.08005)."""
ENCODER, RESULT = "encoder.safetensors", "pretraining.json"
FROM_SCRATCH = "from_scratch"
"""Folder in the run folder of the training from random weights."""
_KEPT = (
    "batch_size",
    "micro_batches",
    "precision",
    "compile",
    "bucket_batches",
    "checkpoint_every",
    "on_nan",
    "stall_timeout_s",
    "log_every_steps",
)
"""Keys of `train` that hold for both trainings. The learning rate is a fixed one, so trials share the encoder."""
_WITHOUT_EFFECT = {"checkpoint_every", "on_nan", "stall_timeout_s", "log_every_steps"}


class Learned(BaseModel):
    """What an encoder learned from; `pretraining.json`."""

    rows: int
    """Rows whose texts it has read, those of `data.unlabelled` included."""
    epochs: int
    loss: float
    """Mean cross-entropy of the masked tokens of the validation rows."""


class Pretraining(Learned):
    """Effect of `train.pretrain_epochs` on a run; part of `summary.json`."""

    monitor: str
    value: float | None = None
    """Best validation of the model that started from the encoder; None if the two were not compared."""
    value_from_scratch: float | None = None
    """Best validation of the model that started from random weights."""
    kept: bool = True
    """True if the bundle started from the encoder."""


def ready(config: WorkerConfig, report: Report, notes: list[str]) -> WorkerConfig:
    """Return the configuration with the encoder of the run, after training it if it is not stored yet.

    Raises `Interrupted` if `report` asked for a stop.
    """
    if not config.run.train.pretrain_epochs:
        return config
    target = masked(config)
    folder, rows = target.run.run_folder, target.manifest().splits["train"].rows
    path = storage.join(folder, ENCODER)
    if not storage.exists(storage.join(folder, RESULT)):
        fitting.begin(config)
        notes = [*notes, f"the encoder first learns from the texts of {rows:,} rows, by predicting masked tokens"]

        def show(progress: Progress) -> bool:
            done, total = (count * target.run.train.batch_size for count in (progress.step, progress.total_steps))
            return report(Progress("preparing", done, total, notes=notes + progress.notes))

        with fitting.alone(folder, report, notes, "trains the same encoder") as holding:
            if not storage.exists(storage.join(folder, RESULT)):
                fitting.fit(target, show, [])
                saved = checkpoints.ranked(checkpoints.committed(_checkpoints(target)), "valid_loss")[0]
                holding.require()
                _store(saved, path)
                learned = Learned(rows=rows, epochs=target.run.train.epochs, loss=saved.metrics["valid_loss"])
                storage.write_json(storage.join(folder, RESULT), learned.model_dump())
                storage.remove_folder(_checkpoints(target))
    return replace(config, pretrained_encoder=path)


def masked(config: WorkerConfig) -> WorkerConfig:
    """Return the configuration that trains the encoder of a run."""
    run = config.run
    train = Train(
        epochs=run.train.pretrain_epochs,
        betas=(0.9, 0.98),
        early_stopping_patience=0,
        keep_checkpoints=1,
        monitor="valid_loss",
        **{key: getattr(run.train, key) for key in _KEPT},
    )
    # Dropout slows a small model down that has much to learn (ALBERT, arXiv:1909.11942, section 4.9).
    no_dropout = {"dropout": 0.0, "attention_dropout": 0.0, "embedding_dropout": 0.0}
    target = run.model_copy(
        update={"train": train, "model": run.model.model_copy(update=no_dropout), "distill": Distill()}
    )
    seen = run.train.train_on_valid
    depends_on = {
        **target.model_dump(mode="json", include={"seed", "model", "train"}),
        **target.model_dump(mode="json", include={"data": {"shuffle_window"}}),
        "tokens": [run.tokenizer.max_length, run.num_segments, *run.truncation.model_dump().values()],
        "train_on_valid": seen,
    }
    for key in _WITHOUT_EFFECT:
        del depends_on["train"][key]
    depends_on["train"]["micro_batches"] = 1  # the same steps with any number, which a resumed run may change
    digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:16]
    target = target.model_copy(update={"storage": config.prepared, "name": f"pretraining-{digest}"})
    if seen:
        target = target.model_copy(update={"train": train.model_copy(update={"train_on_valid": True})})
    return WorkerConfig(target, config.prepared, config.started, masked=MASKED_SHARE)


def compared(
    config: WorkerConfig, stats: RunStats, report: Report, notes: list[str]
) -> tuple[RunStats, list[Checkpoint], Pretraining]:
    """Train the model from random weights too, and return the better of the two: measurements and checkpoints.

    `stats` are those of the model that started from the encoder. The log of the better one becomes that of the run.
    """
    run, saved = config.run, checkpoints.committed(_checkpoints(config))
    outcome = result(config)
    own = run.model_copy(
        update={
            "storage": run.run_folder,
            "name": FROM_SCRATCH,
            "train": run.train.model_copy(update={"pretrain_epochs": 0, "trackers": ()}),
        }
    )
    plain = replace(config, run=own, pretrained_encoder=None)
    seen = [*notes, fitting.describe_data(config)]
    plain_stats = fitting.fit(plain, report, [*seen, "now the same from random weights, to compare with pre-training"])
    plain_saved = checkpoints.committed(_checkpoints(plain))
    monitor = run.train.monitor
    value, other = (checkpoints.ranked(found, monitor)[0].metrics[monitor] for found in (saved, plain_saved))
    kept = not checkpoints.better(monitor, other, value)
    outcome = outcome.model_copy(update={"value": value, "value_from_scratch": other, "kept": kept})
    if kept:
        return stats, saved, outcome
    resume.replace_log(run.run_folder, own.run_folder)
    return plain_stats, plain_saved, outcome


def result(config: WorkerConfig) -> Pretraining:
    """Return what the encoder of a run learned from."""
    learned = storage.read_as(storage.join(masked(config).run.run_folder, RESULT), Learned)
    return Pretraining(**learned.model_dump(), monitor=config.run.train.monitor)


def _checkpoints(config: WorkerConfig) -> str:
    return storage.join(config.run.run_folder, "checkpoints")


def _store(saved: Checkpoint, path: str) -> None:
    from safetensors.torch import save  # and torch

    from txclf.model.masked_tokens import encoder_weights

    weights = encoder_weights(checkpoints.load(saved)["model"])
    storage.write_bytes(path, save({name: weight.contiguous() for name, weight in weights.items()}))

"""`txclf distill`: the logits of a teacher for the training rows of a run.

They are a sidecar of the prepared data, which `txclf.training.row_sidecars` computes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from txclf.config.run_config import RunConfig
from txclf.core.errors import ConfigError
from txclf.core.text import listed
from txclf.data import shards
from txclf.data.batches import TEACHER
from txclf.data.sidecars import RowGroup, Sidecar
from txclf.inference import bundle
from txclf.inference.classifier import Classifier
from txclf.inference.metadata import BundleMetadata
from txclf.training.job import WorkerConfig
from txclf.training.precision import choose_precision

PIECE_ROWS = 1024
"""Rows between two looks for a request to stop."""


def require_teacher(run: RunConfig, *, pretrains: bool = False) -> None:
    """Raise `ConfigError` if a run has rows without labels and nothing that learns from them.

    `pretrains` is True if a search tries `train.pretrain_epochs`, or had it tried for this run.
    """
    if run.distill.teacher is None and run.data.altered_copies:
        raise ConfigError(
            "`data.altered_copies`: rows without labels need a teacher. Run `txclf distill TEACHER RUN.yaml`, or "
            "remove the key."
        )
    if run.distill.teacher is None and run.data.unlabelled and not (pretrains or run.train.pretrain_epochs):
        raise ConfigError(
            "`data.unlabelled`: rows without labels need a teacher or pre-training. Run `txclf distill TEACHER "
            "RUN.yaml`, set `train.pretrain_epochs`, or remove the key."
        )


def sidecar(config: WorkerConfig) -> Sidecar | None:
    """Return the sidecar of the teacher of a run, or None.

    Raises `ConfigError` if the teacher does not fit the data.
    """
    run, folder = config.run, config.run.distill.teacher
    if folder is None:
        return None
    metadata = bundle.read_metadata(folder)
    labels = config.manifest().labels
    _require_fitting(run, labels, metadata)
    # The labels have an order, and mixed precision changes the logits a little.
    parts = [metadata.model_dump_json(), *labels, str(run.train.precision == "fp32")]
    digest = hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]
    return Sidecar(name=f"teacher-{digest}", column=TEACHER, width=len(labels), splits=("train",))


def _require_fitting(run: RunConfig, labels: Sequence[str], teacher: BundleMetadata) -> None:
    where = f"`distill.teacher`: `{run.distill.teacher}`"
    if teacher.task_spec is not run.task_spec:
        raise ConfigError(f"{where} is a model of `task: {teacher.task}`, not `{run.task}`. Choose another teacher.")
    if set(teacher.labels) != set(labels):
        only = [
            f"{owner} has {listed(names)}"
            for owner, names in (
                ("only the teacher", sorted(set(teacher.labels) - set(labels))),
                ("only the data", sorted(set(labels) - set(teacher.labels))),
            )
            if names
        ]
        raise ConfigError(f"{where} has other labels than the data: {'; '.join(only)}. Choose another teacher.")
    if len(teacher.text_columns) != len(run.data.text):
        raise ConfigError(
            f"{where} reads {len(teacher.text_columns)} text column(s), and `data.text` names {len(run.data.text)}. "
            "Choose another teacher."
        )


def store(config: WorkerConfig, target: Sidecar, groups: Sequence[RowGroup], show: Callable[[int], None]) -> None:
    """Compute and store the teacher's logits of some row groups. `show` receives the rows done since the last call.

    The logits give the calibrated probabilities, in the order of the labels of the data.
    """
    run = config.run
    assert run.distill.teacher is not None
    teacher = Classifier.load(run.distill.teacher)
    order = [teacher.labels.index(label) for label in config.manifest().labels]
    precision, _ = choose_precision(run.train.precision, teacher.device.type == "cuda")
    is_mixed = precision == "bf16-mixed"
    for group in groups:
        logits = []
        for texts in _texts(config, group):
            with torch.autocast(teacher.device.type, torch.bfloat16, enabled=is_mixed):
                logits.append(teacher.logits(teacher.text_rows(texts)))
            show(len(texts))
        answers = np.concatenate(logits)[:, order] / np.float32(teacher.temperature)
        target.write(config.prepared, group, answers)


def _texts(config: WorkerConfig, group: RowGroup) -> Iterator[list[tuple[str, ...]]]:
    """Yield the values of the text columns of a row group in pieces. Raises `ConfigError` if they run together."""
    columns = len(config.run.data.text)
    (table,) = shards.read_groups(config.prepared, group.shard, ["text", "file", "row"], [group.number])
    for start in range(0, len(table), PIECE_ROWS):
        piece = table.slice(start, PIECE_ROWS)
        joined = piece["text"].to_pylist()
        texts = [(text,) if columns == 1 else tuple(text.split("\n")) for text in joined]
        for number, values in enumerate(texts):
            if len(values) != columns:
                raise ConfigError(
                    f"`{piece['file'][number]}`: row {piece['row'][number].as_py():,} has a line break within a text "
                    "column, so the teacher cannot tell the columns apart. Replace it by a space."
                )
        yield texts

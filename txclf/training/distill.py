"""`txclf distill`: the logits of a teacher for the training rows of a run.

The teacher reads each row once. Its logits are a sidecar of the prepared data, so runs, resumed runs and trials share
them. On Ray, tasks with the resources of a worker compute them, as many at a time as there are workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

import numpy as np
import torch

from txclf.config.run_config import RunConfig
from txclf.core.errors import ConfigError
from txclf.data import shards
from txclf.data.batches import TEACHER
from txclf.data.sidecars import RowGroup, Sidecar
from txclf.inference import bundle
from txclf.inference.classifier import Classifier
from txclf.inference.metadata import BundleMetadata
from txclf.training.job import WorkerConfig
from txclf.training.precision import choose_precision
from txclf.training.progress import Interrupted, Progress

Report = Callable[[Progress], bool]
PIECE_ROWS = 1024
"""Rows between two looks for a request to stop."""
TASK_TOKENS = 2**20
"""Tokens of the rows of a task on Ray without a GPU."""
GPU_TASK_TOKENS = 2**25
"""Tokens of the rows of a task on Ray with a GPU, which needs a new process."""


def require_teacher(run: RunConfig) -> None:
    """Raise `ConfigError` if a run has unlabelled rows and no teacher to answer them."""
    if run.data.unlabelled is not None and run.distill.teacher is None:
        raise ConfigError(
            "`data.unlabelled`: rows without labels need a teacher. Run `txclf distill TEACHER RUN.yaml`, or remove "
            "the key."
        )


def compute(
    config: WorkerConfig,
    report: Report = lambda progress: False,
    notes: Sequence[str] = (),
    *,
    on_ray: bool | None = None,
) -> None:
    """Compute the logits of `config.teacher` for the training rows that are not stored yet.

    `report` receives the progress with `notes`. `on_ray` is True to compute on the connected Ray, by default if the run
    does. Raises `Interrupted` if `report` asked for a stop.
    """
    groups = missing(config)
    total, done = sum(group.rows for group in groups), 0

    def show(rows: int) -> None:
        nonlocal done
        done += rows
        if report(Progress("distilling", done, total, notes=list(notes))):
            raise Interrupted

    if not groups:
        return
    if config.run.compute.on_ray if on_ray is None else on_ray:
        _on_ray(config, groups, show)
    else:
        store_logits(config, groups, show)


def missing(config: WorkerConfig) -> list[RowGroup]:
    """Return the row groups of the training rows whose logits are not stored yet."""
    assert config.teacher is not None
    return config.teacher.missing(config.prepared, config.manifest().splits["train"].shards)


def sidecar(config: WorkerConfig) -> Sidecar:
    """Return the sidecar of the teacher of a run. Raises `ConfigError` if the teacher does not fit the data."""
    run, folder = config.run, config.run.distill.teacher
    assert folder is not None
    metadata = bundle.read_metadata(folder)
    labels = config.manifest().labels
    _require_fitting(run, labels, metadata)
    # The labels have an order, and mixed precision changes the logits a little.
    parts = [metadata.model_dump_json(), *labels, str(run.train.precision == "fp32")]
    digest = hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]
    return Sidecar(f"teacher-{digest}", TEACHER, len(labels))


def _require_fitting(run: RunConfig, labels: Sequence[str], teacher: BundleMetadata) -> None:
    where = f"`distill.teacher`: `{run.distill.teacher}`"
    if teacher.task_spec is not run.task_spec:
        raise ConfigError(f"{where} is a model of `task: {teacher.task}`, not `{run.task}`. Choose another teacher.")
    if set(teacher.labels) != set(labels):
        only = [
            f"{owner} has {', '.join(f'`{label}`' for label in names[:5])}{' …' if len(names) > 5 else ''}"
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


def store_logits(
    config: WorkerConfig, groups: Sequence[RowGroup], show: Callable[[int], None] = lambda rows: None
) -> int:
    """Compute and store the teacher's logits of some row groups; return the number of their rows.

    The logits give the calibrated probabilities, in the order of the labels of the data. `show` receives the number of
    rows done since the last call.
    """
    run = config.run
    assert run.distill.teacher is not None
    assert config.teacher is not None
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
        config.teacher.write(config.prepared, group, answers)
    return sum(group.rows for group in groups)


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


def _on_ray(config: WorkerConfig, groups: list[RowGroup], show: Callable[[int], None]) -> None:
    """Compute the logits of row groups by tasks on Ray. A stop waits for the tasks that run."""
    from txclf.training.distributed import worker_task

    needs = config.run.compute
    limit = GPU_TASK_TOKENS if needs.gpus_per_worker else TASK_TOKENS
    with ThreadPoolExecutor(max(1, needs.max_workers)) as pool:
        calls = [pool.submit(worker_task.call, needs, store_logits, config, part) for part in _tasks(groups, limit)]
        pending: set[Future[int]] = set(calls)
        try:
            while pending:
                done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                show(sum(call.result() for call in done))
        finally:
            pool.shutdown(cancel_futures=True)


def _tasks(groups: Sequence[RowGroup], limit: int) -> Iterator[list[RowGroup]]:
    """Yield row groups in parts of about `limit` tokens."""
    part: list[RowGroup] = []
    for group in groups:
        part.append(group)
        if sum(each.tokens for each in part) >= limit:
            yield part
            part = []
    if part:
        yield part

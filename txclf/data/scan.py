"""First pass of `txclf prepare`: read every row once.

The scan of a file yields, for each row, the hash of its text and its labels, or the reason why the row is rejected.
It also yields the sample of texts that the tokenizer is trained on. Only hashes (16 bytes per row) and the sample stay
in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from txclf.config.run_config import RunConfig
from txclf.core.hashing import UInt64s
from txclf.data import pipeline, records, shards
from txclf.data.audit import MAX_SHOWN_REJECTS, Audit, check
from txclf.data.pipeline import Tables
from txclf.data.records import Reject
from txclf.data.sources import Source, stamp

ACCEPTED_SCHEMA = pa.schema(
    [
        ("hash", pa.uint64()),  # of the text
        ("labels", pa.list_(pa.string())),  # one label; any number of labels if multilabel; the target if seq2seq
        ("float_label", pa.bool_()),
        ("sample", pa.string()),  # text for training the tokenizer, null if it is not drawn
        ("target_sample", pa.string()),
    ]
)
REJECTED_SCHEMA = pa.schema([("file", pa.string()), ("row", pa.int64()), ("reason", pa.string())])

ReportProgress = Callable[[str, int], None]
"""Receives the current stage and the number of rows done so far."""


@dataclass(frozen=True)
class FileTask:
    """One file of one split, to be scanned or tokenized."""

    run: RunConfig
    split: str
    source: Source
    number: int
    """Number of the source among all sources of the run, from 0."""
    sample_share: float = 0.0
    """Share of the rows that the tokenizer is trained on."""
    labels: tuple[str, ...] | None = None
    """Training labels. Rows with other labels are rejected. None accepts any label."""


class TokenizerSample(NamedTuple):
    """Texts that the tokenizers are trained on."""

    texts: list[str]
    targets: list[str]
    """Empty if the task has no targets."""


def file_tasks(
    run: RunConfig,
    sources: dict[str, list[Source]],
    split: str,
    *,
    labels: tuple[str, ...] | None,
    sample_share: float = 0.0,
) -> list[FileTask]:
    """Return one task per file of a split. Files are numbered over all splits."""
    splits = list(sources)
    first = sum(len(sources[before]) for before in splits[: splits.index(split)])
    return [
        FileTask(run, split, source, first + number, sample_share, labels)
        for number, source in enumerate(sources[split])
    ]


def scan_all(
    run: RunConfig, sources: dict[str, list[Source]], report: ReportProgress
) -> tuple[dict[str, Audit], TokenizerSample]:
    """Scan every split and check it.

    The training files come first, because the labels of the other splits must be among the training labels. Raises
    `DataError` as `audit.check` does.
    """
    audits: dict[str, Audit] = {}
    sample = TokenizerSample([], [])
    train_share = 0.0
    if run.tokenizer.kind != "file":
        train_share = min(1.0, run.tokenizer.training_megabytes * 2**20 / max(1, num_bytes(sources["train"])))
    has_labels = run.task_spec.has_labels
    num_rows = 0
    for split in sources:
        labels = tuple(audits["train"].labels) if has_labels and split != "train" else None
        share = train_share if split == "train" else 0.0
        audit = audits[split] = Audit()
        hashes, label_hashes = [audit.hashes], [audit.label_hashes]
        tasks = file_tasks(run, sources, split, labels=labels, sample_share=share)
        for table in pipeline.tables(scan, tasks, run.compute.on_ray):
            accepted, rejected = table.filter(table["hash"].is_valid()), table.filter(table["reason"].is_valid())
            audit.rejects += map(Reject, *(rejected[name].to_pylist() for name in REJECTED_SCHEMA.names))
            row_labels = accepted["labels"].to_pylist()
            if has_labels:
                audit.labels.update(chain.from_iterable(row_labels))
                audit.float_labels |= any(accepted["float_label"].to_pylist())
            sample.texts.extend(accepted["sample"].drop_null().to_pylist())
            sample.targets.extend(accepted["target_sample"].drop_null().to_pylist())
            hashes.append(accepted["hash"].to_numpy())
            label_hashes.append(_label_hashes([tuple(row) for row in row_labels]))
            num_rows += table.num_rows
            report("read", num_rows)
            if run.data.on_bad_row == "fail" and len(audit.rejects) >= MAX_SHOWN_REJECTS:
                break
        audit.hashes, audit.label_hashes = np.concatenate(hashes), np.concatenate(label_hashes)
        check(run, split, audit)
    return audits, sample


def scan(task: FileTask) -> Tables:
    """Yield the accepted rows (`ACCEPTED_SCHEMA`) and the rejected rows (`REJECTED_SCHEMA`) of a file.

    Each table has the columns of both schemas; those of the other schema are null.
    """
    known = None if task.labels is None else set(task.labels)
    spec = task.run.task_spec
    for rows, rejects in pipeline.prefetch(read_rows(task)):
        labels = rows.label_sets or [(label,) for label in rows.labels]
        kept = np.arange(len(rows.rows))
        if known is not None:
            unseen = {i: label for i, row in enumerate(labels) for label in row if label not in known}
            unseen_rejects = [
                Reject(rows.files[i], rows.rows[i], f"label `{label}` is not among the training labels")
                for i, label in unseen.items()
            ]
            rejects = sorted([*rejects, *unseen_rejects], key=lambda reject: reject.row)
            kept = np.setdiff1d(kept, np.fromiter(unseen, np.int64, len(unseen)))
        hashes = shards.text_hashes(rows.texts[i] for i in kept)
        sampled = shards.sampled_rows(hashes, task.run.seed, task.sample_share) & ~held_out_rows(task, hashes)
        samples = [(i, bool(is_sampled)) for i, is_sampled in zip(kept, sampled, strict=True)]
        accepted = {
            "hash": hashes,
            "labels": [labels[i] for i in kept],
            "float_label": ["float" in rows.label_kinds] * len(kept),
            "sample": ["\n".join(rows.texts[i]) if is_sampled else None for i, is_sampled in samples],
            "target_sample": [rows.labels[i] if is_sampled and spec.is_seq2seq else None for i, is_sampled in samples],
        }
        yield pa.concat_tables(
            [
                pa.table(accepted, schema=ACCEPTED_SCHEMA),
                pa.Table.from_pylist([reject._asdict() for reject in rejects], schema=REJECTED_SCHEMA),
            ],
            promote_options="default",
        )


def read_rows(task: FileTask) -> Iterator[tuple[records.Rows, list[Reject]]]:
    """Yield the usable rows and the rejected rows of a file, batch by batch."""
    data, spec = task.run.data, task.run.task_spec
    delimiter = data.label_delimiter if spec.is_multilabel else None
    return records.read_rows(task.source, data.text, getattr(data, spec.answer_key), label_delimiter=delimiter)


def held_out_rows(task: FileTask, hashes: UInt64s) -> npt.NDArray[np.bool_]:
    """Return a mask (rows,) of the rows of a training file that are held out for validation."""
    data = task.run.data
    if data.valid is not None or task.split != "train":
        return np.zeros(len(hashes), bool)
    return shards.validation_rows(hashes, task.run.seed, data.valid_fraction)


def num_bytes(sources: list[Source]) -> int:
    """Return the size of some sources on disk, in bytes."""
    return sum(size for source in sources for _, size, _ in stamp(source))


def _label_hashes(labels: list[tuple[str, ...]]) -> UInt64s:
    """Hash the labels of each row. Each distinct set of labels is hashed once."""
    distinct = {row: number for number, row in enumerate(dict.fromkeys(labels))}
    numbers = np.fromiter(map(distinct.__getitem__, labels), np.int64, len(labels))
    return shards.text_hashes(distinct)[numbers]

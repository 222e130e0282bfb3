"""First pass of `txclf prepare`: read every row once.

The scan of a file yields, for each row, the hashes of its text and its labels, or the reason why the row is rejected.
It also yields the number of rows of each label, and the sample of texts that the tokenizer is trained on. Memory holds
the hashes, 16 bytes per training row and 8 per other row, the label counts and the sample. Rejected rows go to a file.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, compress
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from txclf.config.run_config import RunConfig
from txclf.core.hashing import UInt64s
from txclf.core.text import shown
from txclf.data import pipeline, records, shards
from txclf.data.audit import MAX_SHOWN_REJECTS, Audit, check
from txclf.data.corrections import Corrections, require_known
from txclf.data.corrections import apply as apply_corrections
from txclf.data.duplicates import NUM_RANGES, RowHashes
from txclf.data.pipeline import Tables
from txclf.data.records import Reject
from txclf.data.sources import Source, stamp

ACCEPTED_SCHEMA = pa.schema(
    [
        ("hash", pa.uint64()),  # of the text
        ("answer_hash", pa.uint64()),  # of the labels, or of the target if seq2seq; null unless a training file
        ("sample", pa.string()),  # text for training the tokenizer, null if it is not drawn
        ("target_sample", pa.string()),
        ("chars", pa.int64()),  # of the text
    ]
)
LABELS_SCHEMA = pa.schema(
    [
        ("label", pa.string()),
        ("label_rows", pa.int64()),  # accepted rows with this label
        ("label_rows_read", pa.int64()),  # training rows that have it in the file, if there are corrections
        ("label_kinds", pa.list_(pa.string())),  # types of the labels of the batch
    ]
)
CORRECTED_SCHEMA = pa.schema([("correction", pa.int64()), ("corrected_rows", pa.int64())])  # number of a correction
REJECTED_SCHEMA = pa.schema([("file", pa.string()), ("row", pa.int64()), ("reason", pa.string())])

MAX_UNPACKED = 4
"""Ratio of the sampled texts and `tokenizer.training_megabytes` from which on no more texts are sampled."""

AUTO_TEST_ROWS, AUTO_TEST_FRACTION = 1_000, 0.1
"""Training rows from which on `data.test_fraction: auto` holds out rows, and their share."""

FEW_ROWS = 100_000
"""Training rows up to which a share of them may be empty, if it is small or few texts differ."""

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
    test_fraction: float = 0.0
    """Share of the training rows that are held out for the test split."""
    copies: int = 0
    """Altered copies to make of each row of a training file, instead of the row itself."""
    corrections: Corrections = ()
    """Corrected labels of rows."""


class TokenizerSample(NamedTuple):
    """Texts that the tokenizers are trained on."""

    texts: list[str]
    targets: list[str]
    """Empty if the task has no targets."""

    def without(self, left_out: npt.NDArray[np.bool_]) -> TokenizerSample:
        """Return the sample without some rows."""
        return TokenizerSample(*(list(compress(texts, ~left_out)) for texts in self))


def file_tasks(
    run: RunConfig,
    sources: dict[str, list[Source]],
    split: str,
    *,
    labels: tuple[str, ...] | None,
    sample_share: float = 0.0,
    test_fraction: float = 0.0,
    copies: int = 0,
    corrections: Corrections = (),
) -> list[FileTask]:
    """Return one task per file of a split. Files are numbered over all splits."""
    splits = list(sources)
    applied = () if split == shards.UNLABELLED else corrections
    first = sum(len(sources[before]) for before in splits[: splits.index(split)])
    return [
        FileTask(run, split, source, first + number, sample_share, labels, test_fraction, copies, applied)
        for number, source in enumerate(sources[split])
    ]


def scan_all(
    run: RunConfig,
    sources: dict[str, list[Source]],
    report: ReportProgress,
    rejected: IO[bytes],
    corrections: Corrections = (),
) -> tuple[dict[str, Audit], TokenizerSample]:
    """Scan every split and check it. Rejected rows are written to `rejected` as JSON lines.

    The training files come first, because the labels of the other splits must be among the training labels. The number
    of their rows decides whether there is a test split, whose rows the tokenizer must not see. Raises
    `DataError` as `audit.check` does.
    """
    audits: dict[str, Audit] = {}
    sample = TokenizerSample([], [])
    sample_share = 0.0
    sampled = [split for split in ("train", shards.UNLABELLED) if split in sources]
    if run.tokenizer.kind != "file" and run.model.pretrained is None:
        size = sum(num_bytes(sources[split]) for split in sampled)
        sample_share = min(1.0, run.tokenizer.training_megabytes * 2**20 / max(1, size))
    num_rows = sample_chars = 0
    max_sample_chars = MAX_UNPACKED * run.tokenizer.training_megabytes * 2**20
    for split in sources:
        labels = tuple(audits["train"].labels) if run.task_spec.has_labels and split != "train" else None
        share = sample_share if split in sampled else 0.0
        audit = audits[split] = Audit()
        hashes = list[UInt64s]()
        tasks = file_tasks(run, sources, split, labels=labels, sample_share=share, corrections=corrections)
        for table in pipeline.tables(scan, tasks, run.compute.on_ray):
            accepted = table.filter(table["hash"].is_valid())
            answers = accepted["answer_hash"].to_numpy() if split == "train" else None
            audit.hashes.append(accepted["hash"].to_numpy(), answers)
            for counted in table.filter(table["label"].is_valid()).select(LABELS_SCHEMA.names).to_pylist():
                if counted["label_rows"]:
                    audit.labels[counted["label"]] += counted["label_rows"]
                if counted["label_rows_read"]:
                    audit.read_labels.add(counted["label"])
                audit.label_kinds.update(counted["label_kinds"])
            for done in table.filter(table["correction"].is_valid()).select(CORRECTED_SCHEMA.names).to_pylist():
                audit.corrected[done["correction"]] += done["corrected_rows"]
            rejects = [
                Reject(**row)
                for row in table.filter(table["reason"].is_valid()).select(REJECTED_SCHEMA.names).to_pylist()
            ]
            audit.reject(rejects)
            lines = "".join(json.dumps(reject._asdict(), ensure_ascii=False) + "\n" for reject in rejects)
            rejected.write(lines.encode("utf-8", "replace"))
            audit.chars += pc.sum(accepted["chars"]).as_py() or 0
            if sample_chars < max_sample_chars:  # the share follows from the size of the files, which may be compressed
                drawn = accepted.filter(accepted["sample"].is_valid())
                ends = sample_chars + np.cumsum(drawn["chars"].to_numpy())
                # By rows, because tables have other sizes on Ray.
                drawn = drawn.slice(0, 1 + int(np.searchsorted(ends, max_sample_chars)))
                hashes.append(drawn["hash"].to_numpy())
                sample.texts.extend(drawn["sample"].to_pylist())
                sample.targets.extend(drawn["target_sample"].drop_null().to_pylist())
                sample_chars += pc.sum(drawn["chars"]).as_py() or 0
            num_rows += accepted.num_rows + len(rejects)
            report("read", num_rows)
            if run.data.on_bad_row == "fail" and audit.rejected >= MAX_SHOWN_REJECTS:
                break
        if split == "train":
            require_known(corrections, audit.read_labels)
        check(run, split, audit)
        if split == "train" and hashes:
            held_out = shards.held_out_rows(
                np.concatenate(hashes),
                run.seed,
                valid_fraction=valid_fraction(run, audit.hashes),
                test_fraction=test_fraction(run, len(audit.hashes)),
            )
            sample = sample.without(held_out["valid"] | held_out["test"])
    return audits, sample


def valid_fraction(run: RunConfig, hashes: RowHashes) -> float:
    """Return the share of the training rows that are held out for validation, of few rows enough for one text."""
    if run.data.valid is not None:
        return 0.0
    fraction = run.data.valid_fraction
    if not 0 < len(hashes) <= FEW_ROWS:
        return fraction
    texts = np.concatenate([hashes.in_range(number)[0] for number in range(NUM_RANGES)])
    others = texts[~shards.test_rows(texts, test_fraction(run, len(hashes)))]
    first = float(shards.validation_order(others, run.seed).min(initial=1.0))
    return max(fraction, math.nextafter(first, 1.0))


def test_fraction(run: RunConfig, rows: int) -> float:
    """Return the share of the training rows, `rows` in all, that are held out for the test split."""
    if run.data.test is not None:
        return 0.0
    if run.data.test_fraction == "auto":
        return AUTO_TEST_FRACTION if rows >= AUTO_TEST_ROWS else 0.0
    return run.data.test_fraction


def scan(task: FileTask) -> Tables:
    """Yield the accepted rows (`ACCEPTED_SCHEMA`), their labels, the applied corrections, and the rejects.

    Each table has the columns of all four schemas; those of the other schemas are null.
    """
    known = None if task.labels is None else set(task.labels)
    spec = task.run.task_spec
    for rows, rejects in pipeline.prefetch(read_rows(task)):
        read = Counter(chain.from_iterable(row_labels(rows) if task.corrections and known is None else ()))
        rows, corrected = apply_corrections(task.corrections, rows)
        labels = row_labels(rows)
        kept = np.arange(len(rows.rows))
        if known is not None:
            unseen = {i: label for i, row in enumerate(labels) for label in row if label not in known}
            unseen_rejects = [
                Reject(rows.files[i], rows.rows[i], f"label `{shown(label)}` is not among the training labels")
                for i, label in unseen.items()
            ]
            rejects = sorted([*rejects, *unseen_rejects], key=lambda reject: reject.row)
            kept = np.setdiff1d(kept, np.fromiter(unseen, np.int64, len(unseen)))
        labels = [labels[i] for i in kept]
        hashes = shards.text_hashes(rows.texts[i] for i in kept)
        sampled = shards.sampled_rows(hashes, task.run.seed, task.sample_share) & ~held_out_rows(task, hashes)["valid"]
        samples = [(i, bool(is_sampled)) for i, is_sampled in zip(kept, sampled, strict=True)]
        accepted = {
            "hash": hashes,
            "answer_hash": _label_hashes(labels) if task.split == "train" else [None] * len(kept),
            "sample": ["\n".join(rows.texts[i]) if is_sampled else None for i, is_sampled in samples],
            "chars": [sum(map(len, rows.texts[i])) for i in kept],
            "target_sample": [rows.labels[i] if is_sampled and spec.is_seq2seq else None for i, is_sampled in samples],
        }
        counts = Counter(chain.from_iterable(labels)) if spec.has_labels else Counter[str]()
        found = list(read | counts)
        counted = {
            "label": found,
            "label_rows": [counts[label] for label in found],
            "label_rows_read": [read[label] for label in found],
            "label_kinds": [sorted(rows.label_kinds)] * len(found),
        }
        yield pa.concat_tables(
            [
                pa.table(accepted, schema=ACCEPTED_SCHEMA),
                pa.table(counted, schema=LABELS_SCHEMA),
                pa.table([list(corrected), list(corrected.values())], schema=CORRECTED_SCHEMA),
                pa.Table.from_pylist([reject._asdict() for reject in rejects], schema=REJECTED_SCHEMA),
            ],
            promote_options="default",
        )


def read_rows(task: FileTask) -> Iterator[tuple[records.Rows, list[Reject]]]:
    """Yield the usable rows and the rejected rows of a file, batch by batch."""
    data, spec = task.run.data, task.run.task_spec
    delimiter = data.label_delimiter if spec.is_multilabel else None
    answers = None if task.split == shards.UNLABELLED else getattr(data, spec.answer_key)
    return records.read_rows(task.source, data.text, answers, label_delimiter=delimiter)


def row_labels(rows: records.Rows) -> list[tuple[str, ...]]:
    """Return the labels of each row, none if they were not read."""
    return rows.label_sets or [(label,) for label in rows.labels] or [()] * len(rows.rows)


def held_out_rows(task: FileTask, hashes: UInt64s) -> dict[str, npt.NDArray[np.bool_]]:
    """Return the masks (rows,) of the rows of a file that are held out for other splits, `valid` and `test`."""
    data = task.run.data
    from_file = task.split == "train"
    return shards.held_out_rows(
        hashes,
        task.run.seed,
        valid_fraction=data.valid_fraction if from_file and data.valid is None else 0.0,
        test_fraction=task.test_fraction if from_file else 0.0,
    )


def num_bytes(sources: list[Source]) -> int:
    """Return the size of some sources on disk, in bytes."""
    return sum(size for source in sources for _, size, _ in stamp(source))


def _label_hashes(labels: list[tuple[str, ...]]) -> UInt64s:
    """Hash the labels of each row. Each distinct set of labels is hashed once."""
    distinct = {row: number for number, row in enumerate(dict.fromkeys(labels))}
    numbers = np.fromiter(map(distinct.__getitem__, labels), np.int64, len(labels))
    return shards.text_hashes(distinct)[numbers]

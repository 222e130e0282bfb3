"""`txclf prepare`: raw labelled files to token shards and a manifest.

    scan       every row once: labels, bad rows, hashes of the texts, the text that the tokenizer learns from
    train the tokenizer on the train split
    tokenize   every row again, to shards in shuffled order

Both passes are plain functions over one file, run in this process (`compute.workers: 0`) or as stages of Ray Data.
Between them only hashes (16 bytes a row) and the tokenizer's sample are held, so raw text may be larger than memory.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.core.errors import ConfigError, DataError
from txclf.core.hashing import UInt64s
from txclf.data import pipeline, records, shards
from txclf.data.audit import SHOWN_REJECTS, Audit, check
from txclf.data.pipeline import Tables
from txclf.data.records import Reject
from txclf.data.shards import Manifest, Shard, Split
from txclf.data.sources import Source, stamp
from txclf.data.sources import find_sources as list_sources
from txclf.data.tokenizer import (
    encode,
    encode_targets,
    parse_tokenizer,
    separator_id,
    tokenizer_hash,
    train_tokenizer,
    vocab_size,
)
from txclf.data.word_cache import Words

BUCKET_BYTES = 64 * 2**20  # raw bytes that become one shard, roughly
SCANNED = pa.schema(
    [
        ("hash", pa.uint64()),  # null where the row is rejected
        ("labels", pa.list_(pa.string())),  # one, but for `multilabel`; or the target of `seq2seq`
        ("float_label", pa.bool_()),
        ("sample", pa.string()),  # text for the tokenizer, null where it is not drawn
        ("target_sample", pa.string()),
        ("file", pa.string()),  # of a rejected row
        ("row", pa.int64()),
        ("reason", pa.string()),
    ]
)

SCHEMAS = {"classify": shards.SCHEMA, "multilabel": shards.SETS, "seq2seq": shards.PAIRS}
"""Of the shards."""

Show = Callable[[str, int], None]
"""Takes what is being done and the rows done so far."""


@dataclass(frozen=True)
class Task:
    """One file of one split."""

    run: RunConfig
    split: str
    source: Source
    number: int
    """Of the source, among all of the run."""
    sample: float = 0.0
    """Share of its rows that the tokenizer learns from."""
    labels: tuple[str, ...] | None = None
    """The training labels, once they are known; rows with another are rejected."""


class Samples(NamedTuple):
    """What the tokenizers learn from."""

    texts: list[str]
    targets: list[str]
    """Of `seq2seq`."""


def prepare(run: RunConfig, show: Show = lambda stage, rows: None) -> str:
    """Prepare the data of a run, unless they are prepared already, and return the prepared folder.

    With `compute.workers` above 0 the work runs on Ray, which must be connected.

    Raises `DataError` for missing files, bad rows under `on_bad_row: fail`, and data that cannot train a classifier.
    """
    sources = find_sources(run)
    fingerprint = _fingerprint(run, sources)
    folder = storage.join(run.storage, "prepared", fingerprint)
    if storage.exists(storage.join(folder, shards.MANIFEST)):
        return folder
    storage.require_writable(folder)
    audits, sample = _scan_all(run, sources, show)
    labels = records.sort_labels(audits["train"].labels)
    tokenizers = _train_tokenizers(run, sample, show)
    for name, content in zip((shards.TOKENIZER, shards.TARGET_TOKENIZER), tokenizers, strict=False):
        storage.write_bytes(storage.join(folder, name), content.encode())
    written = _write_all(run, sources, labels, tokenizers, folder, show)
    rejects = [reject for audit in audits.values() for reject in audit.rejects]
    lines = [json.dumps(reject._asdict(), ensure_ascii=False) + "\n" for reject in rejects]
    storage.write_bytes(storage.join(folder, shards.REJECTED), "".join(lines).encode("utf-8", "replace"))
    manifest = _manifest(run, fingerprint, labels, tokenizers, audits, written)
    storage.write_bytes(storage.join(folder, shards.MANIFEST), (manifest.model_dump_json(indent=2) + "\n").encode())
    return folder


def _answer(run: RunConfig) -> str:
    """The column that holds what a model is to say of a text."""
    return run.data.target if run.task == "seq2seq" else run.data.label


def _train_tokenizers(run: RunConfig, sample: Samples, show: Show) -> list[str]:
    """The tokenizer of the texts, and that of the targets where they have their own."""
    show("training the tokenizer on", len(sample.texts))
    if run.task != "seq2seq":
        return [train_tokenizer(run.tokenizer, sample.texts).to_str()]
    if run.tokenizer.target == "shared":
        return [train_tokenizer(run.tokenizer, chain(sample.texts, sample.targets), for_targets=True).to_str()]
    targets = train_tokenizer(run.tokenizer, sample.targets, for_targets=True)
    return [train_tokenizer(run.tokenizer, sample.texts).to_str(), targets.to_str()]


def find_sources(run: RunConfig) -> dict[str, list[Source]]:
    """The files of each split that the run file names. Raises `ConfigError` or `DataError` when there are none."""
    if run.data.train is None:
        raise ConfigError("`data.train`: not set: name the training files, as in `data.train=train.csv`")
    named = {"train": run.data.train, "valid": run.data.valid, "test": run.data.test}
    return {split: list_sources(paths) for split, paths in named.items() if paths is not None}


def _fingerprint(run: RunConfig, sources: dict[str, list[Source]]) -> str:
    """Of all that the prepared data follow from: settings, seed, and each file's size and time of change."""
    stamps = {split: [[source.path, *map(list, stamp(source))] for source in files] for split, files in sources.items()}
    given = run.tokenizer.file and hashlib.sha256(storage.read_bytes(run.tokenizer.file)).hexdigest()
    unused = {"seq2seq": {"label"}, "classify": {"target"}, "multilabel": {"target"}}[run.task]
    if run.task != "multilabel":
        unused.add("label_delimiter")
    if run.data.truncation != "windows":
        unused |= {"window_overlap", "max_windows"}
    data, tokenizer = (
        run.data.model_dump(exclude={*shards.SPLITS, "ingest", *unused}),
        run.tokenizer.model_dump(exclude={"file", *unused}),
    )
    settings = [2, run.seed, run.task, data, tokenizer, given, stamps]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _size(sources: Iterable[Source]) -> int:
    return sum(size for source in sources for _, size, _ in stamp(source))


# ------------------------------------------------------------------------------------------------------------ scanning


def _scan_all(run: RunConfig, sources: dict[str, list[Source]], show: Show) -> tuple[dict[str, Audit], Samples]:
    """Scans every split, the training files first, for their labels are what the others are held to."""
    audits: dict[str, Audit] = {}
    sample = Samples([], [])
    share = min(1.0, run.tokenizer.training_megabytes * 2**20 / max(1, _size(sources["train"])))
    share = 0.0 if run.tokenizer.kind == "file" else share
    rows = 0
    for split in sources:
        labels = None if split == "train" or run.task == "seq2seq" else tuple(audits["train"].labels)
        audit = audits[split] = Audit()
        hashes, label_hashes = [audit.hashes], [audit.label_hashes]
        tasks = _tasks(run, sources, split, share if split == "train" else 0.0, labels)
        for table in pipeline.tables(_scan, tasks, run.compute.on_ray):
            good, bad = table.filter(table["hash"].is_valid()), table.filter(table["reason"].is_valid())
            audit.rejects += map(Reject, *(bad[name].to_pylist() for name in ("file", "row", "reason")))
            if run.task != "seq2seq":
                audit.labels.update(chain.from_iterable(good["labels"].to_pylist()))
                audit.float_labels |= any(good["float_label"].to_pylist())
            sample.texts.extend(good["sample"].drop_null().to_pylist())
            sample.targets.extend(good["target_sample"].drop_null().to_pylist())
            hashes.append(good["hash"].to_numpy())
            label_hashes.append(_label_hashes([tuple(row) for row in good["labels"].to_pylist()]))
            rows += table.num_rows
            show("read", rows)
            if run.data.on_bad_row == "fail" and len(audit.rejects) >= SHOWN_REJECTS:
                break
        audit.hashes, audit.label_hashes = np.concatenate(hashes), np.concatenate(label_hashes)
        check(run, split, audit)
    return audits, sample


def _label_hashes(labels: list[tuple[str, ...]]) -> UInt64s:
    """Of the labels of each row; many rows have the same."""
    distinct = {row: number for number, row in enumerate(dict.fromkeys(labels))}
    numbers = np.fromiter(map(distinct.__getitem__, labels), np.int64, len(labels))
    return shards.text_hashes(distinct)[numbers]


def _scan(task: Task) -> Tables:
    """What the audit and the tokenizer need of each row of a file."""
    seed = task.run.seed
    known = None if task.labels is None else set(task.labels)
    for rows, rejects in pipeline.prefetch(_rows(task)):
        bad = list(rejects)
        kept = list(range(len(rows.rows)))
        labels = rows.label_sets or [(label,) for label in rows.labels]
        if known is not None:
            unseen = {i: label for i in kept for label in labels[i] if label not in known}
            reason = "label `{}` is not among the training labels"
            bad += [Reject(rows.files[i], rows.rows[i], reason.format(label)) for i, label in unseen.items()]
            bad.sort(key=lambda reject: reject.row)
            kept = sorted(set(kept) - set(unseen))
        hashes = shards.text_hashes(rows.texts[i] for i in kept)
        drawn = shards.sampled_rows(hashes, seed, task.sample) & ~_held_out(task, hashes)
        sample = ["\n".join(rows.texts[i]) if draw else None for i, draw in zip(kept, drawn.tolist(), strict=True)]
        drawn = drawn if task.run.task == "seq2seq" else np.zeros(len(kept), bool)
        targets = [rows.labels[i] if draw else None for i, draw in zip(kept, drawn.tolist(), strict=True)]
        nothing, nulls = [None] * len(kept), [None] * len(bad)
        columns = [
            [*hashes.tolist(), *nulls],
            [*(labels[i] for i in kept), *nulls],
            [*["float" in rows.label_kinds] * len(kept), *nulls],
            [*sample, *nulls],
            [*targets, *nulls],
            *([*nothing, *column] for column in (zip(*bad, strict=True) if bad else [[], [], []])),
        ]
        yield pa.table([pa.array(column, kind) for column, kind in zip(columns, SCANNED.types, strict=True)], SCANNED)


def _rows(task: Task) -> Iterator[tuple[records.Rows, list[Reject]]]:
    """The rows of a file, as the task reads them."""
    data = task.run.data
    delimiter = data.label_delimiter if task.run.task == "multilabel" else None
    return records.read_rows(task.source, data.text, _answer(task.run), label_delimiter=delimiter)


def _held_out(task: Task, hashes: UInt64s) -> Any:
    """Which rows of a training file are set aside for validation; of other files none are."""
    data = task.run.data
    if data.valid is not None or task.split != "train":
        return np.zeros(len(hashes), bool)
    return shards.validation_rows(hashes, task.run.seed, data.valid_fraction)


# ---------------------------------------------------------------------------------------------------------- tokenizing


def _write_all(
    run: RunConfig, sources: dict[str, list[Source]], labels: list[str], tokenizers: list[str], folder: str, show: Show
) -> dict[str, list[Shard]]:
    """Tokenizes every split into shards in shuffled order."""
    splits = [split for split in shards.SPLITS if split in sources or (split == "valid" and run.data.valid is None)]
    written: dict[str, list[Shard]] = {split: [] for split in splits}
    rows = 0
    for files in sources:
        tasks = _tasks(run, sources, files, 0.0, tuple(labels))
        write = partial(_write, folder=folder, split=files, num_labels=len(labels))
        tokenize, num_parts = partial(_tokenize, tokenizers=tokenizers), 1 + _size(sources[files]) // BUCKET_BYTES
        for content in pipeline.external_sort(tokenize, tasks, run.compute.on_ray, write, num_parts):
            for split, shard in json.loads(content).items():
                written[split].append(Shard.model_validate(shard))
                rows += written[split][-1].rows
            show("tokenized", rows)
    for split, parts in written.items():
        parts.sort(key=lambda shard: shard.file)
        if not parts:
            raise DataError(f"`data.valid_fraction`: {run.data.valid_fraction} leaves no row for the {split} split")
    return written


def _write(table: pa.Table, folder: str, split: str, num_labels: int) -> str:
    """Writes a shard, and another of the rows that are set held_out; their records as JSON, which travels through Ray
    Data."""
    held_out = table["held_out"].combine_chunks()
    parts = [(split, table.filter(pc.invert(held_out))), ("valid", table.filter(held_out))]
    written = {
        name: shards.write_shard(folder, name, part.drop_columns("held_out"), num_labels).model_dump()
        for name, part in parts
        if part.num_rows
    }
    return json.dumps(written)


def _tokenize(task: Task, tokenizers: list[str]) -> Tables:
    """The rows of a file, as its schema says, with a column that says which are set aside for validation."""
    assert task.labels is not None
    numbers = {label: number for number, label in enumerate(task.labels)}
    pairs, sets = task.run.task == "seq2seq", task.run.task == "multilabel"
    max_length = task.run.tokenizer.max_length
    encoder, target_encoder = (Words(parse_tokenizer(content)) for content in (tokenizers[0], tokenizers[-1]))
    done = 0
    for rows, _ in pipeline.prefetch(_rows(task)):
        hashes = shards.text_hashes(rows.texts)
        labels = rows.label_sets or [(label,) for label in rows.labels]
        kept = np.flatnonzero([pairs or all(label in numbers for label in row) for row in labels])
        positions = done + kept
        done += len(rows.rows)
        texts = [rows.texts[i] for i in kept]
        input_ids, full_lengths = encode(encoder, texts, max_length, task.run.truncation)
        columns = [
            input_ids,
            pa.array([0 if pairs or sets else numbers[rows.labels[i]] for i in kept], pa.int32()),
            pa.array(["\n".join(text) for text in texts], pa.string()),
            pa.array([rows.files[i] for i in kept], pa.string()),
            pa.array([rows.rows[i] for i in kept], pa.int64()),
            pa.array(full_lengths),
            pa.array(shards.shuffle_keys(hashes[kept], task.number, positions, task.run.seed)),
        ]
        if pairs:
            targets = [rows.labels[i] for i in kept]
            target_ids, full_targets = encode_targets(target_encoder, targets, max_length)
            columns += [target_ids, pa.array(targets, pa.string()), pa.array(full_targets)]
        if sets:
            columns.append(pa.array([sorted(map(numbers.__getitem__, labels[i])) for i in kept], pa.list_(pa.int32())))
        columns.append(pa.array(_held_out(task, hashes[kept])))
        yield pa.table(columns, schema=SCHEMAS[task.run.task].append(pa.field("held_out", pa.bool_())))


def _manifest(
    run: RunConfig,
    fingerprint: str,
    labels: list[str],
    tokenizers: list[str],
    audits: dict[str, Audit],
    written: dict[str, list[Shard]],
) -> Manifest:
    train = audits["train"].hashes
    hashes = {split: audit.hashes for split, audit in audits.items()}
    if run.data.valid is None:
        held_out = shards.validation_rows(train, run.seed, run.data.valid_fraction)
        hashes |= {"train": train[~held_out], "valid": train[held_out]}
    order = np.lexsort((audits["train"].label_hashes, train))
    same = train[order][1:] == train[order][:-1]
    other = audits["train"].label_hashes[order][1:] != audits["train"].label_hashes[order][:-1]
    encoder, target_encoder = parse_tokenizer(tokenizers[0]), parse_tokenizer(tokenizers[-1])
    splits = {}
    for split, parts in written.items():
        rows, rejected = sum(part.rows for part in parts), len(audits[split].rejects) if split in audits else 0
        assert rows == len(hashes[split]), f"{split}: {rows} rows written, {len(hashes[split])} scanned"
        full = sum(part.full_tokens for part in parts)
        tokens = sum(part.tokens for part in parts)
        counts = np.sum([part.label_counts for part in parts], axis=0).tolist()
        splits[split] = Split(
            shards=parts,
            rows=rows,
            read=rows + rejected,
            rejected=rejected,
            tokens=tokens,
            truncated_rows=sum(part.truncated_rows for part in parts),
            truncated_token_share=1.0 - tokens / full,
            target_tokens=sum(part.target_tokens for part in parts),
            truncated_targets=sum(part.truncated_targets for part in parts),
            label_counts=dict(zip(labels, counts, strict=True)),
            unlabelled_rows=sum(part.unlabelled_rows for part in parts),
            label_cardinality=sum(counts) / rows if run.task == "multilabel" else 0.0,
            length_histogram=np.sum([part.length_histogram for part in parts], axis=0).tolist(),
            duplicates=rows - len(np.unique(hashes[split])),
            duplicates_of_train=0 if split == "train" else int(np.isin(hashes[split], hashes["train"]).sum()),
        )
    return Manifest(
        fingerprint=fingerprint,
        labels=labels,
        tokenizer_hash=tokenizer_hash(encoder),
        vocab_size=vocab_size(encoder),
        target_vocab_size=vocab_size(target_encoder) if run.task == "seq2seq" else 0,
        max_length=run.tokenizer.max_length,
        separator_id=separator_id(encoder) if len(run.data.text) > 1 else None,
        length_edges=list(shards.LENGTH_EDGES),
        splits=splits,
        reject_reasons=dict(Counter(reject.reason for audit in audits.values() for reject in audit.rejects)),
        conflicting_texts=len(np.unique(train[order][1:][same & other])),
    )


def _tasks(
    run: RunConfig,
    sources: dict[str, list[Source]],
    files: str,
    sample: float,
    labels: tuple[str, ...] | None,
) -> list[Task]:
    first = sum(len(sources[before]) for before in list(sources)[: list(sources).index(files)])
    return [Task(run, files, source, first + number, sample, labels) for number, source in enumerate(sources[files])]

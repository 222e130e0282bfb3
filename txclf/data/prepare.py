"""`txclf prepare`: raw labelled files to token shards and a manifest.

    scan       read every row once: labels, rejected rows, text hashes, a sample of texts for the tokenizer
    train the tokenizer on the train split
    tokenize   read every row again and write shards in shuffled order

A process builds the data in a folder of its own, which appears under its name when it is complete.

Both passes are plain functions over one file. They run in this process (`compute.workers: 0`) or as stages of Ray
Data. Between them only hashes (16 bytes per training row) and the sample are in memory, so raw text may be larger than
memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import chain
from random import Random

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from txclf.config.run_config import RunConfig
from txclf.config.sections import SpecialTokens
from txclf.core import lease, storage
from txclf.core.errors import ConfigError, DataError
from txclf.data import pipeline, pretrained_tokenizer, records, shards, writers
from txclf.data.altered_texts import altered
from txclf.data.audit import Audit
from txclf.data.duplicates import Duplicates
from txclf.data.duplicates import count as count_duplicates
from txclf.data.label_warnings import label_warnings, split_warnings
from txclf.data.pipeline import Tables
from txclf.data.scan import (
    FileTask,
    ReportProgress,
    TokenizerSample,
    file_tasks,
    held_out_rows,
    num_bytes,
    read_rows,
    row_labels,
    scan_all,
)
from txclf.data.shards import Manifest, Shard, Split
from txclf.data.sources import Source, stamp, state, unchanged
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
from txclf.data.word_cache import WordCache

SHARD_BYTES = 64 * 2**20
"""Approximate number of raw bytes that become one shard."""
FINGERPRINT_VERSION = 3

Ints = npt.NDArray[np.int64]


def prepare(run: RunConfig, show: ReportProgress = lambda stage, rows: None) -> str:
    """Prepare the data of a run, unless they are prepared already, and return the prepared folder.

    With `compute.workers` above 0 the work runs on Ray, which must be connected. `show` receives the current stage and
    the rows done so far.

    Raises `ConfigError` if the run file names no training files. Raises `DataError` for missing files, for bad rows
    under `on_bad_row: fail`, and for data that cannot train a model.
    """
    sources = find_sources(run)
    encoder = pretrained_tokenizer.load(run) if run.model.pretrained is not None else None
    every = [source for files in sources.values() for source in files]
    before = state(every)
    fingerprint = _fingerprint(run, sources, encoder)
    folder = storage.join(run.storage, "prepared", fingerprint)
    if storage.exists(storage.join(folder, shards.MANIFEST)):
        return folder
    place = storage.join(run.storage, "prepared", f".{fingerprint}")

    def wait(note: str) -> None:
        show(note, 0)

    with lease.held(place, wait, math.inf, work="prepares the same data", then="run the command again") as holding:
        if storage.exists(storage.join(folder, shards.MANIFEST)):
            return folder  # the other process was faster
        for name in storage.list_folder(place):
            if name != lease.FILE:
                storage.remove_folder(storage.join(place, name))  # of a process that was killed
        building = storage.join(place, holding.id)
        try:
            with unchanged(every, before):
                _build(run, sources, encoder, building, fingerprint, show)
            holding.require()
            storage.remove_folder(folder)  # of a version that built in place, or without its manifest
            storage.move_folder(building, folder, last=shards.MANIFEST)
        finally:
            storage.remove_folder(building)
    return folder


def _build(
    run: RunConfig,
    sources: dict[str, list[Source]],
    encoder: tuple[str, SpecialTokens] | None,
    folder: str,
    fingerprint: str,
    show: ReportProgress,
) -> None:
    """Write the prepared data of a run to a folder that only this process writes, the manifest last."""
    storage.require_writable(folder)
    with tempfile.TemporaryFile(prefix="txclf-rejected-") as rejected:
        audits, sample = scan_all(run, sources, show, rejected)
        rejected.seek(0)
        with writers.atomic_stream(storage.join(folder, shards.REJECTED), None) as stream:
            shutil.copyfileobj(rejected, stream)
    labels = records.sort_labels(audits["train"].labels)
    tokenizers = [encoder[0]] if encoder else _train_tokenizers(run, sample, show)
    special = encoder[1] if encoder else None
    for name, content in zip((shards.TOKENIZER, shards.TARGET_TOKENIZER), tokenizers, strict=False):
        storage.write_bytes(storage.join(folder, name), content.encode())
    written = _write_all(
        run,
        sources,
        labels=labels,
        tokenizers=tokenizers,
        special=special,
        audits=audits,
        folder=folder,
        report=show,
    )

    manifest = _manifest(
        run,
        fingerprint=fingerprint,
        labels=labels,
        tokenizers=tokenizers,
        special=special,
        audits=audits,
        written=written,
    )
    storage.write_bytes(storage.join(folder, shards.MANIFEST), (manifest.model_dump_json(indent=2) + "\n").encode())


def find_sources(run: RunConfig) -> dict[str, list[Source]]:
    """Return the files of each split that the run file names.

    Raises `ConfigError` if `data.train` is not set, and `DataError` if a path matches no file.
    """
    if run.data.train is None:
        raise ConfigError("`data.train`: not set. Name the training files, as in `data.train=train.csv`.")
    paths_by_split = {split: getattr(run.data, split) for split in shards.SPLITS}
    text_format = run.data.encoding, run.data.delimiter
    return {split: list_sources(paths, *text_format) for split, paths in paths_by_split.items() if paths is not None}


def _fingerprint(run: RunConfig, sources: dict[str, list[Source]], encoder: tuple[str, SpecialTokens] | None) -> str:
    """Hash everything that the prepared data depend on: settings, seed, and each file's size and modification time.

    `encoder` is the tokenizer of a pretrained model, which replaces the settings of `tokenizer`.
    """
    stamps = {split: [[source.path, *map(list, stamp(source))] for source in files] for split, files in sources.items()}
    tokenizer_file = run.tokenizer.file and hashlib.sha256(storage.read_bytes(run.tokenizer.file)).hexdigest()
    unused = {"label", "target"} - {run.task_spec.answer_key}
    if not run.task_spec.is_multilabel:
        unused.add("label_delimiter")
    if run.data.truncation != "windows":
        unused |= {"window_overlap", "max_windows"}
    later = ("altered_copies", "encoding", "delimiter")  # data prepared before these keys keep their fingerprint
    unused |= {key for key in later if getattr(run.data, key) == type(run.data).model_fields[key].default}
    data = run.data.model_dump(exclude={*shards.SPLITS, "shuffle_window", *unused})
    tokenizer = run.tokenizer.model_dump(exclude={"file", *unused})
    settings = [FINGERPRINT_VERSION, run.seed, run.task, data, tokenizer, tokenizer_file, stamps]
    if encoder is not None:
        settings += [hashlib.sha256(encoder[0].encode()).hexdigest(), encoder[1].model_dump()]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _train_tokenizers(run: RunConfig, sample: TokenizerSample, report: ReportProgress) -> list[str]:
    """Return the tokenizer of the texts and, if the targets have their own vocabulary, that of the targets."""
    report("training the tokenizer on", len(sample.texts))
    if not run.task_spec.is_seq2seq:
        return [train_tokenizer(run.tokenizer, sample.texts).to_str()]
    if run.tokenizer.target == "shared":
        return [train_tokenizer(run.tokenizer, chain(sample.texts, sample.targets), for_targets=True).to_str()]
    targets = train_tokenizer(run.tokenizer, sample.targets, for_targets=True)
    return [train_tokenizer(run.tokenizer, sample.texts).to_str(), targets.to_str()]


# ---------------------------------------------------------------------------------------------------------- tokenizing


def _write_all(
    run: RunConfig,
    sources: dict[str, list[Source]],
    *,
    labels: list[str],
    tokenizers: list[str],
    special: SpecialTokens | None,
    audits: dict[str, Audit],
    folder: str,
    report: ReportProgress,
) -> dict[str, list[Shard]]:
    """Tokenize every split into shards in shuffled order."""
    copies = run.data.altered_copies
    named = {*sources, *([] if run.data.valid else ["valid"]), *([shards.UNLABELLED] if copies else [])}
    written: dict[str, list[Shard]] = {split: [] for split in shards.SPLITS if split in named}
    num_rows = 0
    passes = [(split, split, 0) for split in sources] + ([("train", shards.UNLABELLED, copies)] if copies else [])
    for file_split, as_split, copies in passes:
        size = max(num_bytes(sources[file_split]), audits[file_split].chars) * max(1, copies)
        contents = pipeline.external_sort(
            partial(_tokenize, tokenizers=tokenizers, special=special),
            file_tasks(run, sources, file_split, labels=tuple(labels), copies=copies),
            on_ray=run.compute.on_ray,
            write=partial(_write, folder=folder, split=as_split, num_labels=len(labels)),
            num_partitions=1 + size // SHARD_BYTES,
        )
        for content in contents:
            for split, shard in json.loads(content).items():
                written[split].append(Shard.model_validate(shard))
                num_rows += written[split][-1].rows
            report("tokenized", num_rows)
    for split, split_shards in written.items():
        split_shards.sort(key=lambda shard: shard.file)
        if not split_shards:
            raise DataError(
                f"`data.valid_fraction`: {run.data.valid_fraction} leaves no row for the {split} split. "
                "Set another fraction, or name validation files with `data.valid`."
            )
    return written


def _write(table: pa.Table, folder: str, split: str, num_labels: int) -> str:
    """Write one shard of the rows of a split and one of the held-out rows, and return their records.

    The records are JSON, because Ray Data carries no Python objects.
    """
    held_out = table["held_out"].combine_chunks()
    rows_by_split = [(split, table.filter(pc.invert(held_out))), ("valid", table.filter(held_out))]
    written = {
        name: shards.write_shard(folder, name, rows.drop_columns("held_out"), num_labels).model_dump()
        for name, rows in rows_by_split
        if rows.num_rows
    }
    return json.dumps(written)


def _tokenize(task: FileTask, tokenizers: list[str], special: SpecialTokens | None) -> Tables:
    """Yield the tokenized rows of a file, with the column `held_out`: True if a row is held out for validation."""
    assert task.labels is not None
    run, spec = task.run, task.run.task_spec
    label_ids = {label: number for number, label in enumerate(task.labels)}
    encoder, target_encoder = (WordCache(parse_tokenizer(content)) for content in (tokenizers[0], tokenizers[-1]))
    schema = shards.row_schema(spec).append(pa.field("held_out", pa.bool_()))
    rows_done = 0
    for rows, _ in pipeline.prefetch(read_rows(task)):
        labels = row_labels(rows)
        is_kept = [not spec.has_labels or all(label in label_ids for label in row) for row in labels]
        kept = np.flatnonzero(is_kept)
        hashes = shards.text_hashes(rows.texts)[kept]
        held_out = held_out_rows(task, hashes)
        texts = [rows.texts[i] for i in kept]
        if task.copies:
            kept, texts = _altered(task, kept[~held_out].tolist(), rows)
            hashes, held_out = shards.text_hashes(texts), np.zeros(len(texts), bool)
        is_labelled = task.split != shards.UNLABELLED and not task.copies
        input_ids, full_lengths = encode(encoder, texts, run.tokenizer.max_length, run.truncation, special)
        columns = {
            "input_ids": input_ids,
            "label": [
                -1 if not is_labelled else label_ids[rows.labels[i]] if spec.is_single_label else 0 for i in kept
            ],
            "text": ["\n".join(text) for text in texts],
            "file": [rows.files[i] for i in kept],
            "row": [rows.rows[i] for i in kept],
            "full_length": full_lengths,
            "key": shards.shuffle_keys(hashes, task.number, rows_done + kept, run.seed),
            "held_out": held_out,
        }
        if spec.is_seq2seq:
            targets = [rows.labels[i] for i in kept]
            target_ids, full_targets = encode_targets(target_encoder, targets, run.tokenizer.max_length)
            columns |= {"target_ids": target_ids, "target": targets, "target_full_length": full_targets}
        if spec.is_multilabel:
            columns["labels"] = [sorted(map(label_ids.__getitem__, labels[i])) if is_labelled else [] for i in kept]
        rows_done += len(rows.rows)
        yield pa.table(columns, schema=schema)


def _altered(task: FileTask, numbers: Sequence[int], rows: records.Rows) -> tuple[Ints, list[tuple[str, ...]]]:
    """Return the altered copies of some rows of a batch, and the number of the row of each."""
    draw = Random(f"{task.run.seed} {task.number} {rows.rows[0]}")
    columns = [
        list(altered([rows.texts[i][column] for i in numbers], task.copies, draw))
        for column in range(len(task.run.data.text))
    ]
    texts = [tuple(text for _, text in copies) for copies in zip(*columns, strict=True)]
    return np.array([numbers[place] for place, _ in columns[0]], np.int64), texts


# ------------------------------------------------------------------------------------------------------------ manifest


def _manifest(
    run: RunConfig,
    *,
    fingerprint: str,
    labels: list[str],
    tokenizers: list[str],
    special: SpecialTokens | None,
    audits: dict[str, Audit],
    written: dict[str, list[Shard]],
) -> Manifest:
    """Sum up the scan and the shards of all splits."""
    held_out = partial(shards.validation_rows, seed=run.seed, fraction=run.data.valid_fraction)
    duplicates, conflicting_texts = count_duplicates(
        {split: audit.hashes for split, audit in audits.items()}, held_out if run.data.valid is None else None
    )
    train_rows = sum(shard.rows for shard in written["train"])
    splits = {
        split: _split_record(
            split_shards,
            labels=labels,
            duplicates=duplicates.get(split, Duplicates(0, 0, 0)),
            altered=run.data.altered_copies * train_rows if split == shards.UNLABELLED else 0,
            rejected=audits[split].rejected if split in audits else 0,
            is_multilabel=run.task_spec.is_multilabel,
        )
        for split, split_shards in written.items()
    }
    encoder, target_encoder = parse_tokenizer(tokenizers[0]), parse_tokenizer(tokenizers[-1])
    return Manifest(
        fingerprint=fingerprint,
        labels=labels,
        tokenizer_hash=tokenizer_hash(encoder),
        vocab_size=vocab_size(encoder),
        target_vocab_size=vocab_size(target_encoder) if run.task_spec.is_seq2seq else 0,
        max_length=run.tokenizer.max_length,
        separator_id=separator_id(encoder) if len(run.data.text) > 1 and special is None else None,
        special_tokens=special,
        length_edges=list(shards.LENGTH_EDGES),
        splits=splits,
        reject_reasons=dict(sum((audit.reasons for audit in audits.values()), Counter[str]())),
        conflicting_texts=conflicting_texts,
        warnings=[
            *(f"`data.{split}`: skipped rows. {audit.advice}" for split, audit in audits.items() if audit.advice),
            *label_warnings(labels, audits["train"].label_kinds),
            *split_warnings({split: record.label_counts for split, record in splits.items()}),
        ],
    )


def _split_record(
    split_shards: list[Shard],
    *,
    labels: list[str],
    duplicates: Duplicates,
    altered: int,
    rejected: int,
    is_multilabel: bool,
) -> Split:
    """Sum up the shards of a split."""
    rows = sum(shard.rows for shard in split_shards)
    assert rows == duplicates.rows + altered, f"{rows} rows written, {duplicates.rows} scanned, {altered} altered"
    tokens = sum(shard.tokens for shard in split_shards)
    label_counts = np.sum([shard.label_counts for shard in split_shards], axis=0).tolist()
    return Split(
        shards=split_shards,
        rows=rows,
        read=duplicates.rows + rejected,
        rejected=rejected,
        tokens=tokens,
        truncated_rows=sum(shard.truncated_rows for shard in split_shards),
        truncated_token_share=1.0 - tokens / sum(shard.full_tokens for shard in split_shards),
        target_tokens=sum(shard.target_tokens for shard in split_shards),
        truncated_targets=sum(shard.truncated_targets for shard in split_shards),
        label_counts=dict(zip(labels, label_counts, strict=True)),
        unlabelled_rows=sum(shard.unlabelled_rows for shard in split_shards),
        label_cardinality=sum(label_counts) / rows if is_multilabel else 0.0,
        length_histogram=np.sum([shard.length_histogram for shard in split_shards], axis=0).tolist(),
        duplicates=duplicates.within,
        duplicates_of_train=duplicates.of_train,
    )

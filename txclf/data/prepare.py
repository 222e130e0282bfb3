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
from txclf.data import corrections as label_corrections
from txclf.data import pipeline, pretrained_tokenizer, records, shards, writers
from txclf.data.altered_texts import altered
from txclf.data.audit import Audit
from txclf.data.corrections import Corrections
from txclf.data.manifest import summed_up
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
    test_fraction,
    valid_fraction,
)
from txclf.data.shards import Shard
from txclf.data.sources import Source, stamp, state, unchanged
from txclf.data.sources import find_sources as list_sources
from txclf.data.tokenizer import (
    encode,
    encode_targets,
    parse_tokenizer,
    train_tokenizer,
)
from txclf.data.word_cache import WordCache

HELD_OUT = ("valid", "test")
"""Splits that are held out of the training rows if they have no files."""
SHARD_BYTES = 64 * 2**20
"""Approximate number of raw bytes that become one shard."""
FINGERPRINT_VERSION = 4

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
    corrected = label_corrections.sources(run.data.corrections or ())
    every = [*(source for files in sources.values() for source in files), *corrected]
    before = state(every)
    fingerprint = _fingerprint(run, sources, encoder, label_corrections.digests(corrected))
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
                corrections = label_corrections.load(run, corrected)
                _build(run, sources, encoder, building, fingerprint, show, corrections=corrections)
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
    *,
    corrections: Corrections,
) -> None:
    """Write the prepared data of a run to a folder that only this process writes, the manifest last."""
    storage.require_writable(folder)
    with tempfile.TemporaryFile(prefix="txclf-rejected-") as rejected:
        audits, sample = scan_all(run, sources, show, rejected, corrections)
        if run.data.valid is None:
            share = valid_fraction(run, audits["train"].hashes)
            run = run.model_copy(update={"data": run.data.model_copy(update={"valid_fraction": share})})
        rejected.seek(0)
        with writers.atomic_stream(storage.join(folder, shards.REJECTED), None) as stream:
            shutil.copyfileobj(rejected, stream)
    applied = sum((audit.corrected for audit in audits.values()), Counter[int]())
    warnings = label_corrections.unmatched(corrections, applied)
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
        corrections=corrections,
    )

    manifest = summed_up(
        run,
        fingerprint=fingerprint,
        labels=labels,
        tokenizers=tokenizers,
        special=special,
        audits=audits,
        written=written,
        corrections=label_corrections.counted(corrections, applied),
        warnings=warnings,
    )
    storage.write_bytes(storage.join(folder, shards.MANIFEST), (manifest.model_dump_json(indent=2) + "\n").encode())


def find_sources(run: RunConfig) -> dict[str, list[Source]]:
    """Return the files of each split that the run file names.

    Raises `ConfigError` if `data.train` is not set, and `DataError` if a path matches no file.
    """
    if run.data.train is None:
        raise ConfigError("`data.train`: not set. Name the training files, as in `data.train=train.csv`.")
    paths_by_split = {split: getattr(run.data, split) for split in shards.SPLITS}
    # A folder may contain the storage: what txclf has written there is no data.
    settings = run.data.encoding, run.data.delimiter, run.storage
    return {split: list_sources(paths, *settings) for split, paths in paths_by_split.items() if paths is not None}


def _fingerprint(
    run: RunConfig,
    sources: dict[str, list[Source]],
    encoder: tuple[str, SpecialTokens] | None,
    corrections: Sequence[str],
) -> str:
    """Hash everything that the prepared data depend on: settings, seed, and each file's size and modification time.

    `encoder` is the tokenizer of a pretrained model, which replaces the settings of `tokenizer`. `corrections` are the
    digests of the files of corrections, wherever they are.
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
    if run.data.test is not None:
        unused.add("test_fraction")
    data = run.data.model_dump(exclude={*shards.SPLITS, "shuffle_window", "corrections", *unused})
    tokenizer = run.tokenizer.model_dump(exclude={"file", *unused})
    settings = [FINGERPRINT_VERSION, run.seed, run.task, data, tokenizer, tokenizer_file, stamps]
    if encoder is not None:
        settings += [hashlib.sha256(encoder[0].encode()).hexdigest(), encoder[1].model_dump()]
    if corrections:
        settings += ["corrections", *corrections]
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
    corrections: Corrections,
) -> dict[str, list[Shard]]:
    """Tokenize every split into shards in shuffled order."""
    copies = run.data.altered_copies
    held_out_for_test = test_fraction(run, len(audits["train"].hashes))
    named = {
        *sources,
        *([] if run.data.valid else ["valid"]),
        *(["test"] if held_out_for_test else []),
        *([shards.UNLABELLED] if copies else []),
    }
    written: dict[str, list[Shard]] = {split: [] for split in shards.SPLITS if split in named}
    num_rows = 0
    passes = [(split, split, 0) for split in sources] + ([("train", shards.UNLABELLED, copies)] if copies else [])
    for file_split, as_split, copies in passes:
        size = max(num_bytes(sources[file_split]), audits[file_split].chars) * max(1, copies)
        contents = pipeline.external_sort(
            partial(_tokenize, tokenizers=tokenizers, special=special),
            file_tasks(
                *(run, sources, file_split),
                labels=tuple(labels),
                test_fraction=held_out_for_test,
                copies=copies,
                corrections=corrections,
            ),
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
        if not split_shards and split != "test":
            by_test = split == "train" and run.data.valid is not None
            key, other = ("test", "test") if by_test else ("valid", "validation")
            raise DataError(
                f"`data.{key}_fraction` leaves no row for the {split} split. "
                f"Set another fraction, or name {other} files with `data.{key}`."
            )
    if written.get("test") == []:  # few different texts
        if run.data.test_fraction != "auto":
            raise DataError(
                f"`data.test_fraction`: {held_out_for_test} leaves no row for the test split. "
                "Set another fraction, or name test files with `data.test`."
            )
        del written["test"]
    return written


def _write(table: pa.Table, folder: str, split: str, num_labels: int) -> str:
    """Write a shard of the rows of a split and one of each split that is held out of it, and return their records.

    The records are JSON, because Ray Data carries no Python objects.
    """
    rows_by_split = [
        (name, table.filter(pc.equal(table["held_out"], number))) for number, name in enumerate((split, *HELD_OUT))
    ]
    written = {
        name: shards.write_shard(folder, name, rows.drop_columns("held_out"), num_labels).model_dump()
        for name, rows in rows_by_split
        if rows.num_rows
    }
    return json.dumps(written)


def _tokenize(task: FileTask, tokenizers: list[str], special: SpecialTokens | None) -> Tables:
    """Yield the tokenized rows of a file, with the column `held_out`: 0, or 1 + the number of a split in `HELD_OUT`."""
    assert task.labels is not None
    run, spec = task.run, task.run.task_spec
    label_ids = {label: number for number, label in enumerate(task.labels)}
    encoder, target_encoder = (WordCache(parse_tokenizer(content)) for content in (tokenizers[0], tokenizers[-1]))
    schema = shards.row_schema(spec).append(pa.field("held_out", pa.int8()))
    rows_done = 0
    for rows, _ in pipeline.prefetch(read_rows(task)):
        rows, _ = label_corrections.apply(task.corrections, rows)
        labels = row_labels(rows)
        is_kept = [not spec.has_labels or all(label in label_ids for label in row) for row in labels]
        kept = np.flatnonzero(is_kept)
        hashes = shards.text_hashes(rows.texts)[kept]
        masks = held_out_rows(task, hashes)
        held_out = np.select([masks[name] for name in HELD_OUT], range(1, len(HELD_OUT) + 1)).astype(np.int8)
        texts = [rows.texts[i] for i in kept]
        if task.copies:
            kept, texts = _altered(task, kept[held_out == 0].tolist(), rows, rows_done)
            hashes, held_out = shards.text_hashes(texts), np.zeros(len(texts), np.int8)
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


def _altered(
    task: FileTask, numbers: Sequence[int], rows: records.Rows, rows_done: int
) -> tuple[Ints, list[tuple[str, ...]]]:
    """Return the altered copies of some rows of a batch, and the number of the row of each.

    `rows_done` counts the rows of the file before the batch, so that each batch has random numbers of its own.
    """
    draw = Random(f"{task.run.seed} {task.number} {rows_done}")
    columns = [
        list(altered([rows.texts[i][column] for i in numbers], task.copies, draw))
        for column in range(len(task.run.data.text))
    ]
    texts = [tuple(text for _, text in copies) for copies in zip(*columns, strict=True)]
    return np.array([numbers[place] for place, _ in columns[0]], np.int64), texts

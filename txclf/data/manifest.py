"""Sums of the scan and of the written shards: the manifest of prepared data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

import numpy as np

from txclf.config.run_config import RunConfig
from txclf.config.sections import SpecialTokens
from txclf.data import shards
from txclf.data.audit import Audit
from txclf.data.duplicates import Duplicates
from txclf.data.duplicates import count as count_duplicates
from txclf.data.label_warnings import label_warnings, split_warnings
from txclf.data.scan import test_fraction
from txclf.data.shards import Corrected, Manifest, Shard, Split
from txclf.data.tokenizer import parse_tokenizer, separator_id, tokenizer_hash, vocab_size


def summed_up(
    run: RunConfig,
    *,
    fingerprint: str,
    labels: list[str],
    tokenizers: list[str],
    special: SpecialTokens | None,
    audits: dict[str, Audit],
    written: dict[str, list[Shard]],
    corrections: Corrected | None = None,
    warnings: Sequence[str] = (),
) -> Manifest:
    """Sum up the scan and the shards of all splits."""
    held_out = partial(
        shards.held_out_rows,
        seed=run.seed,
        valid_fraction=run.data.valid_fraction if run.data.valid is None else 0.0,
        test_fraction=test_fraction(run, len(audits["train"].hashes)),
    )
    hashes = {split: audit.hashes for split, audit in audits.items()}
    duplicates, conflicting_texts = count_duplicates(hashes, held_out)
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
        corrections=corrections,
        warnings=[
            *warnings,
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

"""Prepared data: Parquet shards of token ids, and the manifest that marks a folder as complete.

    <prepared>/{train,valid,test,unlabelled}/part-*.parquet    columns of `SCHEMA`, in shuffled order
    <prepared>/tokenizer.json
    <prepared>/rejected.jsonl                                  bad rows that were skipped
    <prepared>/manifest.json                                   written last; it lists the shards

The split and the position of a row are pure functions of (seed, text, file and number of the row). So one process and
a cluster write the same shards from the same files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from txclf.config.sections import SpecialTokens
from txclf.config.tasks import TaskSpec
from txclf.core import storage
from txclf.core.errors import DataError
from txclf.core.hashing import UInt64s, mix, uniform

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
REJECTED = "rejected.jsonl"
SPLITS = ("train", "valid", "test", "unlabelled")
UNLABELLED = "unlabelled"
"""Split of the rows that only a teacher answers."""
GROUP_ROWS = 8192
"""Rows of a Parquet row group, the unit of reading."""

SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("label", pa.int32()),  # index into the manifest's labels; -1 for a row of the split `unlabelled`
        ("text", pa.string()),  # raw text; several columns are joined by newlines
        ("file", pa.string()),  # path or URI of the raw file
        ("row", pa.int64()),  # record number in that file, from 1
        ("full_length", pa.int64()),  # tokens before truncation to max_length
        ("key", pa.uint64()),  # shuffle key, the order of the rows
    ]
)
SEQ2SEQ_SCHEMA = pa.schema(
    [
        *SCHEMA,
        ("target_ids", pa.list_(pa.int32())),  # with [BOS], and with [EOS] unless truncated
        ("target", pa.string()),
        ("target_full_length", pa.int64()),
    ]
)
"""Schema of `task: seq2seq`, which does not use `label`."""
MULTILABEL_SCHEMA = pa.schema([*SCHEMA, ("labels", pa.list_(pa.int32()))])
"""Schema of `task: multilabel`, which does not use `label`. `labels` are ascending indices into the labels."""
_FIELDS = pa.unify_schemas([SEQ2SEQ_SCHEMA, MULTILABEL_SCHEMA])
TARGET_TOKENIZER = "target_tokenizer.json"
LENGTH_EDGES = tuple(int(edge) for edge in np.unique(np.round(2 ** (np.arange(33) / 2)).astype(int)))  # 1 … 65536


def row_schema(spec: TaskSpec) -> pa.Schema:
    """Return the schema of the shards of a task."""
    if spec.is_seq2seq:
        return SEQ2SEQ_SCHEMA
    return MULTILABEL_SCHEMA if spec.is_multilabel else SCHEMA


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shard(_Record):
    """One Parquet file of a split, with counts that can be summed over files."""

    file: str
    """Path within the prepared folder."""
    rows: int
    tokens: int
    full_tokens: int
    """Tokens before truncation to `max_length`."""
    truncated_rows: int
    label_counts: list[int]
    unlabelled_rows: int = 0
    """Rows without any label; 0 unless multilabel or of the split `unlabelled`."""
    target_tokens: int = 0
    """Target tokens, `[BOS]` and `[EOS]` included; 0 unless seq2seq."""
    truncated_targets: int = 0
    length_histogram: list[int]
    """Rows per bin of the length before truncation; bins start at the manifest's `length_edges`."""
    group_tokens: list[int]
    """Tokens of each row group."""

    @property
    def split(self) -> str:
        """Split that the file was written for."""
        return self.file.partition("/")[0]


class Split(_Record):
    """Counts of one split; `read` is `rows` + `rejected`."""

    shards: list[Shard]
    rows: int
    read: int
    rejected: int
    tokens: int
    truncated_rows: int
    truncated_token_share: float
    """Share of all tokens that truncation to `max_length` removed."""
    target_tokens: int = 0
    truncated_targets: int = 0
    label_counts: dict[str, int]
    unlabelled_rows: int = 0
    """Rows without any label; 0 unless multilabel or of the split `unlabelled`."""
    label_cardinality: float = 0.0
    """Mean number of labels per row; 0 unless multilabel."""
    length_histogram: list[int]
    duplicates: int
    """Rows whose text occurs earlier in this split."""
    duplicates_of_train: int
    """Rows whose text also occurs in the train split; 0 for the train split."""

    @property
    def labelled_rows(self) -> int:
        """Rows that are not of the split `unlabelled`, which may be part of the training rows."""
        return sum(shard.rows for shard in self.shards if shard.split != UNLABELLED)


class Corrected(_Record):
    """Counts of `data.corrections`, over all splits."""

    rows: int
    """Rows that match a correction."""
    dropped: int
    """Those of them that are left out."""


class Manifest(_Record):
    """Contents of a prepared folder."""

    format: int = 1
    fingerprint: str
    labels: list[str]
    """Labels in the order of the model's outputs."""
    tokenizer_hash: str
    """SHA-256 of `tokenizer.json`."""
    vocab_size: int
    target_vocab_size: int = 0
    """Target vocabulary; equals `vocab_size` if it is shared, 0 unless seq2seq."""
    max_length: int
    separator_id: int | None = None
    """Token between text columns; None for a single column, and for the tokenizer of a pretrained model."""
    special_tokens: SpecialTokens | None = None
    """Special tokens of the tokenizer of a pretrained model; None for a model from scratch."""
    length_edges: list[int]
    splits: dict[str, Split]
    reject_reasons: dict[str, int]
    conflicting_texts: int
    """Texts that occur in the training files with more than one label, set of labels or target."""
    corrections: Corrected | None = None
    """Rows that `data.corrections` changed; None without the key."""
    warnings: list[str] = []
    """Warnings about labels and corrections."""


def load_manifest(folder: str) -> Manifest:
    """Return the manifest of a prepared folder.

    Raises `DataError` if the folder is incomplete or its tokenizer is not that of the shards.
    """
    path = storage.join(folder, MANIFEST)
    if not storage.exists(path):
        raise DataError(
            f"`{folder}`: no {MANIFEST}, so this is no folder of prepared data or preparing was interrupted. "
            "Run `txclf prepare`."
        )
    try:
        manifest = Manifest.model_validate_json(storage.read_bytes(path))
    except ValidationError:
        raise DataError(f"`{path}`: not a manifest of this version. Run `txclf prepare` again.") from None
    tokenizer = storage.join(folder, TOKENIZER)
    if not storage.exists(tokenizer) or storage.sha256(tokenizer) != manifest.tokenizer_hash:
        raise DataError(f"`{tokenizer}`: not the tokenizer that the shards were made with. {_advice(folder)}")
    return manifest


def tokenizers(folder: str) -> list[str]:
    """Return the tokenizer of prepared data and, if the targets have their own, that of the targets."""
    paths = [storage.join(folder, name) for name in (TOKENIZER, TARGET_TOKENIZER)]
    return [storage.read_bytes(path).decode() for path in paths if storage.exists(path)]


def with_rows_of(manifest: Manifest, split: str) -> Manifest:
    """Return the manifest with the rows of a split appended to the training split."""
    train, other = manifest.splits["train"], manifest.splits[split]
    counts = {label: count + other.label_counts[label] for label, count in train.label_counts.items()}
    sums = {name: getattr(train, name) + getattr(other, name) for name in ("shards", "rows", "tokens")}
    return manifest.model_copy(
        update={"splits": {**manifest.splits, "train": train.model_copy(update={**sums, "label_counts": counts})}}
    )


def write_shard(folder: str, split: str, table: pa.Table, num_labels: int) -> Shard:
    """Sort rows by key and write them as one shard, named by its first key. `table` has one of the schemas above."""
    table = table.sort_by([("key", "ascending"), ("file", "ascending"), ("row", "ascending")])
    file = f"{split}/part-{table['key'][0].as_py():016x}.parquet"
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=GROUP_ROWS, write_page_checksum=True)
    storage.write_bytes(storage.join(folder, file), sink.getvalue())
    lengths = _lengths(table["input_ids"])
    full = table["full_length"].to_numpy()
    has_targets = "target_ids" in table.column_names
    target_lengths = _lengths(table["target_ids"]) if has_targets else np.zeros(0, np.int64)
    truncated_targets = (table["target_full_length"].to_numpy() > target_lengths - 1).sum() if has_targets else 0
    is_multilabel = "labels" in table.column_names
    labels = (table["labels"].combine_chunks().flatten() if is_multilabel else table["label"]).to_numpy()
    histogram, _ = np.histogram(full, bins=[0, *LENGTH_EDGES[1:], np.inf])
    return Shard(
        file=file,
        rows=table.num_rows,
        tokens=int(lengths.sum()),
        full_tokens=int(np.maximum(full, lengths).sum()),
        truncated_rows=int((full > lengths).sum()),
        target_tokens=int(target_lengths.sum()),
        truncated_targets=int(truncated_targets),
        label_counts=np.bincount(labels[labels >= 0], minlength=num_labels)[:num_labels].tolist(),
        unlabelled_rows=int((_lengths(table["labels"]) == 0).sum() if is_multilabel else (labels < 0).sum()),
        length_histogram=histogram.tolist(),
        group_tokens=np.add.reduceat(lengths, np.arange(0, len(lengths), GROUP_ROWS)).tolist(),
    )


def read_split(folder: str, manifest: Manifest, split: str, columns: Sequence[str]) -> pa.Table:
    """Return all rows of a split in prepared order. Raises `DataError` naming a damaged or missing shard."""
    tables = [read_shard(folder, shard, columns) for shard in manifest.splits[split].shards]
    return pa.concat_tables(tables)


def first_rows(folder: str, manifest: Manifest, split: str, columns: Sequence[str], most: int) -> Iterator[pa.Table]:
    """Yield the first rows of a split, a random sample of at most `most`, one row group at a time.

    Raises `DataError` naming a damaged or missing shard.
    """
    for shard in manifest.splits[split].shards:
        for table in read_groups(folder, shard, columns):
            yield table.slice(0, most)
            most -= table.num_rows
            if most <= 0:
                return


def read_shard(folder: str, shard: Shard, columns: Sequence[str]) -> pa.Table:
    """Return the rows of one shard. Raises `DataError` if the shard is damaged or missing."""
    return pa.concat_tables(read_groups(folder, shard, columns))


def read_groups(
    folder: str, shard: Shard, columns: Sequence[str], groups: Sequence[int] | None = None
) -> Iterator[pa.Table]:
    """Yield row groups of one shard, up to `GROUP_ROWS` rows each; all of them in order by default.

    Raises `DataError` if the shard is damaged or missing.
    """
    path = storage.join(folder, shard.file)
    filesystem, inner = storage.resolve(path)
    schema = pa.schema([_FIELDS.field(column) for column in columns])
    try:
        with pq.ParquetFile(inner, filesystem=filesystem, page_checksum_verification=True) as file:
            if (file.metadata.num_rows, file.num_row_groups) != (shard.rows, len(shard.group_tokens)):
                found = f"{file.metadata.num_rows} rows in {file.num_row_groups} row groups"
                raise ValueError(f"{found}, the manifest says {shard.rows} in {len(shard.group_tokens)}")
            for group in range(file.num_row_groups) if groups is None else groups:
                table = file.read_row_group(group, list(columns)).cast(schema)
                expected = (min(GROUP_ROWS, shard.rows - group * GROUP_ROWS), shard.group_tokens[group])
                tokens = int(_lengths(table["input_ids"]).sum()) if "input_ids" in columns else expected[1]
                if (len(table), tokens) != expected:  # page checksums do not cover the headers of pages
                    found = f"{len(table)} rows of {tokens} tokens in row group {group}"
                    raise ValueError(f"{found}, the manifest says {expected[0]} of {expected[1]}")
                yield table
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"`{path}`: the shard cannot be read: {error}. {_advice(folder)}") from None


def _advice(folder: str) -> str:
    return f"Remove `{folder}` and run `txclf prepare` again."


def text_hashes(texts: Iterable[tuple[str, ...]]) -> UInt64s:
    """Return a 64-bit hash of the text of each row (blake2b), the same on any machine."""
    digests = b"".join(
        hashlib.blake2b("\x1f".join(row).encode("utf-8", "surrogatepass"), digest_size=8).digest() for row in texts
    )
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def validation_rows(hashes: UInt64s, seed: int, fraction: float) -> npt.NDArray[np.bool_]:
    """Return a mask of the training rows held out for validation. It depends on the text: duplicates stay together."""
    return validation_order(hashes, seed) < fraction


def validation_order(hashes: UInt64s, seed: int) -> npt.NDArray[np.float64]:
    """Return the share of the training rows from which on each row is held out for validation."""
    return uniform(mix(hashes ^ mix(np.uint64(seed) + np.uint64(1))))


def test_rows(hashes: UInt64s, fraction: float) -> npt.NDArray[np.bool_]:
    """Return a mask of the training rows held out for the test split, the same for runs of any seed."""
    return uniform(mix(hashes ^ mix(~np.uint64(0)))) < fraction  # no seed is that large


def held_out_rows(
    hashes: UInt64s, seed: int, *, valid_fraction: float, test_fraction: float
) -> dict[str, npt.NDArray[np.bool_]]:
    """Return the masks of the training rows held out for `valid` and `test`; a fraction of 0 holds out none."""
    is_test = test_rows(hashes, test_fraction)
    return {"valid": validation_rows(hashes, seed, valid_fraction) & ~is_test, "test": is_test}


def sampled_rows(hashes: UInt64s, seed: int, fraction: float) -> npt.NDArray[np.bool_]:
    """Return a mask of the rows that the tokenizer is trained on if the text is too large to use all of it."""
    return uniform(mix(hashes ^ mix(np.uint64(seed) + np.uint64(2)))) < fraction


def shuffle_keys(hashes: UInt64s, source: int, positions: npt.NDArray[np.int64], seed: int) -> UInt64s:
    """Return sort keys that shuffle the rows of all files. A row is identified by its source and its position there."""
    location = mix(positions.astype(np.uint64) ^ mix(np.uint64(source)))
    return mix(hashes ^ location ^ mix(np.uint64(seed) + np.uint64(3)))


def _lengths(lists: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    lengths = [np.diff(np.from_dlpack(chunk.offsets)) for chunk in lists.chunks]
    return np.concatenate([np.empty(0, np.int64), *lengths])

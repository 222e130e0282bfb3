"""Prepared data: Parquet shards of token ids, and the manifest that marks a folder as whole.

    <prepared>/{train,valid,test}/part-*.parquet    columns of `SCHEMA`, in shuffled order
    <prepared>/tokenizer.json
    <prepared>/rejected.jsonl                       bad rows that were skipped
    <prepared>/manifest.json                        written last; it lists the shards

Which split a row falls into and where it stands are pure functions of (seed, text, place of the row), so the same
files give the same shards whoever prepares them, one process or a cluster.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from txclf.core import storage
from txclf.core.errors import DataError
from txclf.core.hashing import UInt64s, mix, uniform

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
REJECTED = "rejected.jsonl"
SPLITS = ("train", "valid", "test")
GROUP_ROWS = 8192
"""Rows that are compressed, and may be read, at a time."""

SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("label", pa.int32()),  # index into the manifest's labels
        ("text", pa.string()),  # as it was read; several columns are joined by newlines
        ("file", pa.string()),  # path or URI it was read from
        ("row", pa.int64()),  # record number in that file, from 1
        ("full_length", pa.int64()),  # tokens before the cut to max_length
        ("key", pa.uint64()),  # the shuffle key that orders the rows
    ]
)
PAIRS = pa.schema(
    [
        *SCHEMA,
        ("target_ids", pa.list_(pa.int32())),  # with [BOS], and [EOS] unless it was cut
        ("target", pa.string()),
        ("target_full_length", pa.int64()),
    ]
)
"""Of `task: seq2seq`, where `label` means nothing."""
SETS = pa.schema([*SCHEMA, ("labels", pa.list_(pa.int32()))])
"""Of `task: multilabel`, where `label` means nothing: indices into the manifest's labels, ascending."""
_FIELDS = pa.unify_schemas([PAIRS, SETS])
TARGET_TOKENIZER = "target_tokenizer.json"
LENGTH_EDGES = tuple(int(edge) for edge in np.unique(np.round(2 ** (np.arange(33) / 2)).astype(int)))  # 1 … 65536


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shard(_Record):
    """One Parquet file of a split and what can be summed over files."""

    file: str
    """Path within the prepared folder."""
    rows: int
    tokens: int
    full_tokens: int
    """Tokens before the cut to `max_length`."""
    truncated_rows: int
    label_counts: list[int]
    unlabelled_rows: int = 0
    """Of `multilabel`: rows without any label."""
    target_tokens: int = 0
    """Of `seq2seq`, `[BOS]` and `[EOS]` among them."""
    truncated_targets: int = 0
    length_histogram: list[int]
    """Rows by full length, over the bins that start at the manifest's `length_edges`."""


class Split(_Record):
    """A split: read = rows + rejected."""

    shards: list[Shard]
    rows: int
    read: int
    rejected: int
    tokens: int
    truncated_rows: int
    truncated_token_share: float
    """Share of all tokens that the cut to `max_length` lost."""
    target_tokens: int = 0
    truncated_targets: int = 0
    label_counts: dict[str, int]
    unlabelled_rows: int = 0
    """Of `multilabel`: rows without any label."""
    label_cardinality: float = 0.0
    """Of `multilabel`: labels of a row, on average."""
    length_histogram: list[int]
    duplicates: int
    """Rows whose text already stands in this split."""
    duplicates_of_train: int
    """Rows whose text also stands in the train split (0 for train)."""


class Manifest(_Record):
    """What a prepared folder holds."""

    format: int = 1
    fingerprint: str
    labels: list[str]
    """In the order of the model's outputs."""
    tokenizer_hash: str
    vocab_size: int
    target_vocab_size: int = 0
    """Of `seq2seq`; where the vocabulary is shared, the same."""
    max_length: int
    separator_id: int | None = None
    """The token between text columns, where there are several."""
    length_edges: list[int]
    splits: dict[str, Split]
    reject_reasons: dict[str, int]
    conflicting_texts: int
    """Texts that stand in the training files under more than one label, set of labels or target."""


def load_manifest(folder: str) -> Manifest:
    """The manifest of a prepared folder. Raises `DataError` when the folder is not whole."""
    path = storage.join(folder, MANIFEST)
    if not storage.exists(path):
        raise DataError(f"`{folder}`: no {MANIFEST}, so these are not prepared data or they are half-finished")
    try:
        return Manifest.model_validate_json(storage.read_bytes(path))
    except ValidationError:
        raise DataError(f"`{path}`: not a manifest of this version: run `txclf prepare` again") from None


def tokenizers(folder: str) -> list[str]:
    """The tokenizer of prepared data, and that of the targets where they have their own."""
    paths = [storage.join(folder, name) for name in (TOKENIZER, TARGET_TOKENIZER)]
    return [storage.read_bytes(path).decode() for path in paths if storage.exists(path)]


def with_valid(manifest: Manifest) -> Manifest:
    """The manifest as if the training split held the validation rows too, after its own."""
    train, valid = manifest.splits["train"], manifest.splits["valid"]
    counts = {label: count + valid.label_counts[label] for label, count in train.label_counts.items()}
    sums = {name: getattr(train, name) + getattr(valid, name) for name in ("shards", "rows", "tokens")}
    return manifest.model_copy(
        update={"splits": {**manifest.splits, "train": train.model_copy(update={**sums, "label_counts": counts})}}
    )


def write_shard(folder: str, split: str, table: pa.Table, num_labels: int) -> Shard:
    """Writes rows of `SCHEMA`, sorted by key here, as one shard named by its first key."""
    table = table.sort_by([("key", "ascending"), ("file", "ascending"), ("row", "ascending")])
    file = f"{split}/part-{table['key'][0].as_py():016x}.parquet"
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=GROUP_ROWS, write_page_checksum=True)
    storage.write_bytes(storage.join(folder, file), sink.getvalue())
    lengths = _lengths(table["input_ids"])
    full = table["full_length"].to_numpy()
    pairs = "target_ids" in table.column_names
    target_lengths = _lengths(table["target_ids"]) if pairs else np.zeros(0, np.int64)
    cut_targets = (table["target_full_length"].to_numpy() > target_lengths - 1).sum() if pairs else 0
    sets = "labels" in table.column_names
    labels = table["labels"].combine_chunks().flatten() if sets else table["label"]
    histogram, _ = np.histogram(full, bins=[0, *LENGTH_EDGES[1:], np.inf])
    return Shard(
        file=file,
        rows=table.num_rows,
        tokens=int(lengths.sum()),
        full_tokens=int(np.maximum(full, lengths).sum()),
        truncated_rows=int((full > lengths).sum()),
        target_tokens=int(target_lengths.sum()),
        truncated_targets=int(cut_targets),
        label_counts=np.bincount(labels.to_numpy(), minlength=num_labels)[:num_labels].tolist(),
        unlabelled_rows=int((_lengths(table["labels"]) == 0).sum()) if sets else 0,
        length_histogram=histogram.tolist(),
    )


def read_split(folder: str, manifest: Manifest, split: str, columns: Sequence[str]) -> pa.Table:
    """All rows of a split, in prepared order. Raises `DataError` naming a shard that is damaged or missing."""
    tables = [read_shard(folder, shard, columns) for shard in manifest.splits[split].shards]
    return pa.concat_tables(tables)


def read_shard(folder: str, shard: Shard, columns: Sequence[str]) -> pa.Table:
    """One shard. Raises `DataError` naming it when it is damaged or missing."""
    return pa.concat_tables(read_groups(folder, shard, columns))


def read_groups(folder: str, shard: Shard, columns: Sequence[str]) -> Iterator[pa.Table]:
    """One shard, `GROUP_ROWS` rows at a time. Raises `DataError` naming it when it is damaged or missing."""
    path = storage.join(folder, shard.file)
    filesystem, inner = storage.resolve(path)
    schema = pa.schema([_FIELDS.field(column) for column in columns])
    rows = tokens = 0
    try:
        with pq.ParquetFile(inner, filesystem=filesystem, page_checksum_verification=True) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, list(columns)).cast(schema)
                rows += table.num_rows
                tokens += int(_lengths(table["input_ids"]).sum()) if "input_ids" in columns else 0
                yield table
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"`{path}`: the shard cannot be read: {error}; remove {folder} to prepare anew") from None
    expected = (shard.rows, shard.tokens if "input_ids" in columns else 0)
    if (rows, tokens) != expected:  # page checksums do not cover the headers of pages
        found = f"{rows} rows of {tokens} tokens, the manifest says {expected[0]} of {expected[1]}"
        raise DataError(f"`{path}`: damaged: {found}; remove {folder} to prepare anew")


def text_hashes(texts: Iterable[tuple[str, ...]]) -> UInt64s:
    """A 64-bit hash of each row's text (blake2b), the same on any machine."""
    digests = b"".join(
        hashlib.blake2b("\x1f".join(row).encode("utf-8", "surrogatepass"), digest_size=8).digest() for row in texts
    )
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def validation_rows(hashes: UInt64s, seed: int, fraction: float) -> npt.NDArray[np.bool_]:
    """Which rows of the training files are set aside for validation: by text alone: duplicates stay together."""
    return uniform(mix(hashes ^ mix(np.uint64(seed) + np.uint64(1)))) < fraction


def sampled_rows(hashes: UInt64s, seed: int, fraction: float) -> npt.NDArray[np.bool_]:
    """Which rows the tokenizer learns from when there is too much text for all of it."""
    return uniform(mix(hashes ^ mix(np.uint64(seed) + np.uint64(2)))) < fraction


def shuffle_keys(hashes: UInt64s, source: int, positions: npt.NDArray[np.int64], seed: int) -> UInt64s:
    """Sorting by these keys shuffles all rows of all files; a row is named by its source and its position there."""
    place = mix(positions.astype(np.uint64) ^ mix(np.uint64(source)))
    return mix(hashes ^ place ^ mix(np.uint64(seed) + np.uint64(3)))


def _lengths(lists: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    offsets = itertools.chain.from_iterable(np.diff(np.from_dlpack(chunk.offsets)) for chunk in lists.chunks)
    return np.fromiter(offsets, np.int64, len(lists))

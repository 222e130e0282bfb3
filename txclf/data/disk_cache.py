"""Token rows in files on the local disk, for data larger than memory. Batches are the same as from memory.

The shards are copied once, a few thousand rows at a time, to a flat file of token ids in the folder for temporary
files. Each batch then reads its rows from that file. Memory holds 16 bytes per row, plus the cache of the operating
system, which shrinks on demand. The files are unlinked as soon as every process of the node has opened them, so a
killed run leaves none behind.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack

import numpy as np
import pyarrow as pa

from txclf.core.errors import StorageError
from txclf.data.batches import PairRows, Rows, TokenRows
from txclf.data.labels import LabelSets
from txclf.data.sampler import WHOLE, Int32s, Ints, Layout
from txclf.data.shards import Manifest

LENGTHS = ".lengths"
"""Suffix of the file with the lengths of a column."""


class SpooledRows(TokenRows):
    """`TokenRows` whose token ids are in a file, opened by `open_spool`."""

    def __init__(
        self, tokens: int, lengths: Int32s, labels: Int32s, label_sets: LabelSets | None, layout: Layout = WHOLE
    ) -> None:
        self.layout = layout
        self.file = tokens
        self.lengths, self.labels, self.label_sets = lengths, labels, label_sets
        self.starts = _starts(lengths)

    def tokens(self, rows: Ints) -> Int32s:
        chunks = [
            os.pread(self.file, 4 * int(length), 4 * int(start))
            for start, length in zip(self.starts[rows], self.lengths[rows], strict=True)
        ]
        return np.frombuffer(b"".join(chunks), np.int32)

    def __del__(self) -> None:
        os.close(self.file)


def spool(tables: Iterable[pa.Table], folder: str, num_tokens: int, columns: Sequence[str]) -> None:
    """Write columns of tables to a folder, one flat file each.

    Lists, which are token ids and `labels` (list<int32>), also get a file with their lengths; `label` is one int32 per
    row. Raises `StorageError` if the disk is too small or cannot be written.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if 4 * num_tokens > free:
            raise StorageError(
                f"`{folder}`: {free / 1e9:.1f} GB free, but the tokens take {4 * num_tokens / 1e9:.1f} GB. "
                "Set TMPDIR to a larger disk, or set `data.ingest: memory`."
            )
        names = [*columns, *(column + LENGTHS for column in columns if column != "label")]
        with ExitStack() as stack:
            files = {name: stack.enter_context(open(os.path.join(folder, name), "wb")) for name in names}
            for table in tables:
                for column in columns:
                    if column == "label":
                        values = table[column].to_numpy()
                    else:
                        rows = TokenRows([table], column)
                        values = rows.values
                        files[column + LENGTHS].write(rows.lengths.data)
                    files[column].write(np.ascontiguousarray(values, np.int32).data)
    except OSError as error:
        raise StorageError(
            f"`{folder}`: cannot be written: {error.strerror or error}. Set TMPDIR to another disk."
        ) from error


def open_spool(folder: str, columns: Sequence[str], layout: Layout = WHOLE) -> Rows:
    """Open the rows of a spooled folder. The folder may be removed afterwards."""

    def values(name: str) -> Int32s:
        return np.fromfile(os.path.join(folder, name), np.int32)

    labels = values("label") if "label" in columns else np.empty(0, np.int32)
    sets = LabelSets(values("labels"), values("labels" + LENGTHS)) if "labels" in columns else None
    sides = [
        SpooledRows(os.open(os.path.join(folder, column), os.O_RDONLY), values(column + LENGTHS), labels, sets, layout)
        for column in columns
        if column not in ("label", "labels")
    ]
    return sides[0] if len(sides) == 1 else PairRows(*sides)


def spooled(
    tables: Callable[[], Iterable[pa.Table]],
    folder: str,
    num_tokens: int,
    columns: Sequence[str],
    *,
    first: bool = True,
    barrier: Callable[[], None] = lambda: None,
    layout: Layout = WHOLE,
) -> Rows:
    """Spool the rows of `tables` in the first process of a node, and return them in every process.

    `barrier` waits for the other processes of the node. The folder is removed before the function returns.
    """
    try:
        if first:
            spool(tables(), folder, num_tokens, columns)
        barrier()
        rows = open_spool(folder, columns, layout)
        barrier()
    finally:
        if first:
            shutil.rmtree(folder, ignore_errors=True)
    return rows


def streams(setting: str, manifest: Manifest, budget: int) -> tuple[bool, str]:
    """Choose between streaming training data to disk (True) and holding them in memory, and describe the choice.

    `setting` is `data.ingest`. `budget` is the maximum size in memory under `auto`, in bytes.
    """
    splits = [manifest.splits[name] for name in ("train", "valid")]
    size = sum(4 * (split.tokens + split.target_tokens) + 16 * split.rows for split in splits)
    stream = setting == "stream" or (setting == "auto" and size > budget)
    where = "streamed to local disk" if stream else "kept in memory"
    reason = f"limit {_size(budget)}" if setting == "auto" else "set by `data.ingest`"
    return stream, f"training data: {_size(size)}, {where} ({reason})"


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def machine_memory() -> int:
    """Return the bytes of memory of the machine, or of its control group if that has less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/sys/fs/cgroup/memory.max") as file:
            return min(total, int(file.read()))
    except (OSError, ValueError):  # no control groups, or `max`
        return total


def _starts(lengths: Int32s) -> Ints:
    ends = np.cumsum(lengths, dtype=np.int64)
    ends -= lengths
    return ends

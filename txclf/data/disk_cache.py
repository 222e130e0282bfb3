"""Rows on this machine's disk, for data that memory should not hold: the same batches as from memory.

The shards are read once, a few thousand rows at a time, into a flat file of token ids in the folder for temporary
files; each batch then reads its rows there. Memory holds 16 bytes a row and the operating system's cache, which gives
way. The files are unlinked as soon as every process of the node has opened them: what is killed later leaves nothing.
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
"""Ends the name of the file of a column's lengths."""


class SpooledRows(TokenRows):
    """`TokenRows` whose token ids lie in a file. Made by `open_spool`."""

    def __init__(
        self, tokens: int, lengths: Int32s, labels: Int32s, label_sets: LabelSets | None, layout: Layout = WHOLE
    ) -> None:
        self.layout = layout
        self.file = tokens
        self.lengths, self.labels, self.label_sets = lengths, labels, label_sets
        self.starts = _starts(lengths)

    def tokens(self, rows: Ints) -> Int32s:
        parts = [
            os.pread(self.file, 4 * int(length), 4 * int(start))
            for start, length in zip(self.starts[rows], self.lengths[rows], strict=True)
        ]
        return np.frombuffer(b"".join(parts), np.int32)

    def __del__(self) -> None:
        os.close(self.file)


def spool(tables: Iterable[pa.Table], folder: str, num_tokens: int, columns: Sequence[str]) -> None:
    """Writes columns of tables into a folder: token ids (list<int32>), flat, with their lengths, `label`, and `labels`
    (list<int32>), flat, with theirs.

    Raises `StorageError` when the disk has no room.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if 4 * num_tokens > free:
            raise StorageError(
                f"`{folder}`: {free / 1e9:.1f} GB free, but the tokens take {4 * num_tokens / 1e9:.1f} GB: "
                "set TMPDIR to a larger disk, or `data.ingest: memory`"
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
            f"`{folder}`: cannot be written: {error.strerror or error}: set TMPDIR to another disk"
        ) from error


def open_spool(folder: str, columns: Sequence[str], layout: Layout = WHOLE) -> Rows:
    """The rows of a spooled folder, which may be removed after this."""

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
    first: bool = True,
    barrier: Callable[[], None] = lambda: None,
    layout: Layout = WHOLE,
) -> Rows:
    """The rows of `tables`, spooled by the first process of a node for all of them; nothing of the folder is left.

    `barrier` waits for the other processes.
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
    """Whether training data are streamed to disk rather than held in memory, by `data.ingest`; and a line that says so.

    `budget` is the most bytes that they may take in memory under `auto`.
    """
    splits = [manifest.splits[name] for name in ("train", "valid")]
    size = sum(4 * (split.tokens + split.target_tokens) + 16 * split.rows for split in splits)
    stream = setting == "stream" or (setting == "auto" and size > budget)
    reason = "as the run file says"
    if setting == "auto":
        reason = f"they {'do not ' if stream else ''}fit the {_size(budget)} that data may take in memory"
    return stream, f"{_size(size)} of training data {'streamed to local disk' if stream else 'in memory'}: {reason}"


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def machine_memory() -> int:
    """Bytes of memory that this process may use: of the machine, or of its control group where that has less."""
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

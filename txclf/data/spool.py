"""Rows on this machine's disk, for data that memory should not hold: the same batches as from memory.

The shards are read once, a few thousand rows at a time, into a flat file of token ids in the folder for temporary
files; each batch then reads its rows there. Memory holds 16 bytes a row and the operating system's cache, which gives
way. The files are unlinked as soon as every process of the node has opened them: what is killed later leaves nothing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa

from txclf.data.batches import Int32s, Ints, TokenRows
from txclf.data.shards import Manifest
from txclf.errors import StorageError

NAMES = ("tokens", "lengths", "labels")


class SpooledRows(TokenRows):
    """`TokenRows` whose token ids lie in a file. Made by `open_spool`."""

    def __init__(self, tokens: int, lengths: Int32s, labels: Int32s) -> None:
        self.file = tokens
        self.lengths, self.labels = lengths, labels
        self.starts = _starts(lengths)

    def tokens(self, rows: Ints) -> Int32s:
        parts = [
            os.pread(self.file, 4 * int(length), 4 * int(start))
            for start, length in zip(self.starts[rows], self.lengths[rows], strict=True)
        ]
        return np.frombuffer(b"".join(parts), np.int32)

    def __del__(self) -> None:
        os.close(self.file)


def spool(tables: Iterable[pa.Table], folder: str, num_tokens: int) -> None:
    """Writes tables of `input_ids` and `label` into a folder. Raises `StorageError` when the disk has no room."""
    try:
        os.makedirs(folder, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if 4 * num_tokens > free:
            raise StorageError(
                f"`{folder}`: {free / 1e9:.1f} GB free, but the tokens take {4 * num_tokens / 1e9:.1f} GB: "
                "set TMPDIR to a larger disk, or `data.ingest: memory`"
            )
        files = [open(os.path.join(folder, name), "wb") for name in NAMES]  # noqa: SIM115
        try:
            for table in tables:
                rows = TokenRows([table])
                for file, values in zip(files, (rows.values, rows.lengths, rows.labels), strict=True):
                    file.write(np.ascontiguousarray(values, np.int32).data)
        finally:
            for file in files:
                file.close()
    except OSError as error:
        raise StorageError(
            f"`{folder}`: cannot be written: {error.strerror or error}: set TMPDIR to another disk"
        ) from error


def open_spool(folder: str) -> SpooledRows:
    """The rows of a spooled folder, which may be removed after this."""
    lengths, labels = (np.fromfile(os.path.join(folder, name), np.int32) for name in NAMES[1:])
    return SpooledRows(os.open(os.path.join(folder, NAMES[0]), os.O_RDONLY), lengths, labels)


def spooled(
    tables: Callable[[], Iterable[pa.Table]],
    folder: str,
    num_tokens: int,
    first: bool = True,
    barrier: Callable[[], None] = lambda: None,
) -> SpooledRows:
    """The rows of `tables`, spooled by the first process of a node for all of them; nothing of the folder is left.

    `barrier` waits for the other processes.
    """
    try:
        if first:
            spool(tables(), folder, num_tokens)
        barrier()
        rows = open_spool(folder)
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
    size = sum(4 * split.tokens + 16 * split.rows for split in splits)
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

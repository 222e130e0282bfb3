"""Blocks of Ray Data with the rows of one rank in one window.

A block is one row: the rows of the rank, as an Arrow stream in a binary cell. So all blocks have one row and one
schema, and what Ray Data does with blocks leaves their rows together. This module imports neither torch nor Ray, so
that reading tasks start quickly.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from txclf.core.errors import TxclfError
from txclf.data.window_reader import Reader


def cut(reader: Reader, world_size: int) -> Callable[[dict[str, Any]], Iterator[pa.Table]]:
    """Return the function of the reading tasks: window numbers to one block per rank, or its error as a block."""

    def blocks(batch: dict[str, Any]) -> Iterator[pa.Table]:
        for number in batch["window"].tolist():
            try:
                rows = reader.read(number)
                for rank, table in enumerate(reader.cut(number, rows, range(world_size), world_size)):
                    yield _block(number, rank, _ipc(table))
            except TxclfError as error:  # as a value, because Ray Data keeps only the text of a raised error
                for rank in range(world_size):
                    yield _block(number, rank, pa.py_buffer(b""), pickle.dumps(error))

    return blocks


def unpack(block: pa.Table, rank: int) -> tuple[int, pa.Table]:
    """Return the window and the rows of a block for a rank, without a copy. Raises the error that it holds."""
    error = block["error"][0].as_py()
    if error is not None:
        raise pickle.loads(error)
    assert block["rank"][0].as_py() == rank, "the block of another rank"
    with pa.ipc.open_stream(block["content"][0].as_buffer()) as reader:
        return block["window"][0].as_py(), reader.read_all()


def _ipc(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _block(window: int, rank: int, content: pa.Buffer, error: bytes | None = None) -> pa.Table:
    """Return a block; the content is not copied."""
    offsets = pa.py_buffer(bytes(8) + content.size.to_bytes(8, "little"))
    cell = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, content])
    return pa.table({"window": [window], "rank": [rank], "content": cell, "error": pa.array([error], pa.binary())})

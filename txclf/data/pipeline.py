"""Run plain functions over items (files, shards), in this process or as stages of Ray Data.

Both ways give the same tables.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import pairwise
from typing import Any, TypeVar, cast

import numpy as np
import pyarrow as pa

Item = TypeVar("Item")
Tables = Iterator[pa.Table]
MAX_OPEN_FILES = 128
"""Files that a sort in this process writes at the same time."""
BUFFER_BYTES = 32 * 2**20
"""Rows that a sort in this process collects before it distributes them to files."""


def dataset(function: Callable[[Item], Tables], items: Sequence[Item]) -> Any:
    """Return a Ray Data dataset of the tables that `function` yields per item, in the order of the items."""
    import ray

    ray.data.DataContext.get_current().execution_options.preserve_order = True

    def read(batch: dict[str, Any]) -> Tables:
        for number in batch["id"]:
            yield from function(items[number])

    return ray.data.range(len(items), override_num_blocks=len(items)).map_batches(read, batch_size=1)


def tables(function: Callable[[Item], Tables], items: Sequence[Item], on_ray: bool) -> Tables:
    """Yield the tables that `function` yields per item, in the order of the items."""
    if on_ray:
        yield from dataset(function, items).iter_batches(batch_size=None, batch_format="pyarrow")
    else:
        for item in items:
            yield from function(item)


def prefetch(items: Iterator[Item], depth: int = 4) -> Iterator[Item]:
    """Yield the same items, produced by a thread up to `depth` items ahead."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, items, end) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(pool.submit(next, items, end))
                yield cast(Item, item)
        finally:
            pool.shutdown(cancel_futures=True)


def external_sort(
    function: Callable[[Item], Tables],
    items: Sequence[Item],
    *,
    on_ray: bool,
    write: Callable[[pa.Table], str],
    num_partitions: int,
) -> Iterator[str]:
    """Sort the rows of all tables by `key` and write them in partitions with disjoint key ranges.

    `key` is an evenly distributed uint64 column. `write` sorts and writes one partition; its return values are yielded.
    In this process, the rows of each of the `num_partitions` partitions first go to a local file. Memory holds one
    partition or `BUFFER_BYTES` of rows, and at most `MAX_OPEN_FILES` files are open, however many partitions there are.
    On Ray, the sort of Ray Data chooses the partitions.
    """
    if on_ray:

        def write_block(block: pa.Table) -> dict[str, list[str]]:
            return {"written": [write(block)] if block.num_rows else []}

        blocks = dataset(function, items).sort("key")
        for row in blocks.map_batches(write_block, batch_size=None, batch_format="pyarrow").iter_rows():
            yield row["written"]
        return
    with tempfile.TemporaryDirectory(prefix="txclf-sort-") as folder:
        rows = tables(function, items, on_ray=False)
        for partition in _partitions(rows, range(num_partitions), num_partitions, folder):
            yield write(partition)


def _partitions(rows: Tables, numbers: range, num_partitions: int, folder: str) -> Tables:
    """Yield the rows of each partition that has rows, in the order of the partitions.

    `numbers` are the partitions that the rows belong to. If they are too many to open a file for each, a file holds the
    rows of several consecutive partitions, and is split in the same way afterwards.
    """
    width = math.ceil(len(numbers) / MAX_OPEN_FILES)
    groups = [numbers[start : start + width] for start in range(0, len(numbers), width)]
    paths = [os.path.join(folder, f"{group.start}-{group.stop}") for group in groups]
    _distribute(rows, groups, num_partitions, paths)
    for path, group in zip(paths, groups, strict=True):
        if not os.path.exists(path):
            continue
        with pa.memory_map(path) as file, pa.ipc.open_stream(file) as reader:
            if len(group) == 1:
                yield reader.read_all()
            else:
                batches = (pa.Table.from_batches([batch]) for batch in reader)
                yield from _partitions(batches, group, num_partitions, folder)
        os.remove(path)


def _distribute(rows: Tables, groups: Sequence[range], num_partitions: int, paths: Sequence[str]) -> None:
    """Write the rows of each group of partitions to its path. A group without rows gets no file."""
    starts = np.asarray([group.start for group in groups])
    with ExitStack() as stack:
        writers: dict[str, Any] = {}
        for table in _buffered(rows):
            partition = (table["key"].to_numpy() / 2.0**64 * num_partitions).astype(np.int64)
            group_of_row = np.searchsorted(starts, partition, side="right") - 1
            order = np.argsort(group_of_row, kind="stable")
            table = table.take(pa.array(order))
            bounds = np.searchsorted(group_of_row[order], np.arange(len(groups) + 1)).tolist()
            for path, (start, stop) in zip(paths, pairwise(bounds), strict=True):
                if start < stop:
                    if path not in writers:
                        writers[path] = stack.enter_context(pa.ipc.new_stream(path, table.schema))
                    writers[path].write_table(table.slice(start, stop - start))


def _buffered(rows: Tables) -> Tables:
    """Yield the same rows in tables of about `BUFFER_BYTES`."""
    waiting: list[pa.Table] = []
    num_bytes = 0
    for table in rows:
        if waiting and num_bytes + table.nbytes > BUFFER_BYTES:
            yield pa.concat_tables(waiting)
            waiting, num_bytes = [], 0
        waiting.append(table)
        num_bytes += table.nbytes
    if waiting:
        yield pa.concat_tables(waiting)

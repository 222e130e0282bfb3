"""Run plain functions over items (files, shards), in this process or as stages of Ray Data.

Both ways give the same tables.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, TypeVar, cast

import numpy as np
import pyarrow as pa

Item = TypeVar("Item")
Tables = Iterator[pa.Table]


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
    In this process, the rows of each of the `num_partitions` partitions first go to a local file, so memory holds one
    partition at a time. On Ray, the sort of Ray Data chooses the partitions.
    """
    if on_ray:

        def write_block(block: pa.Table) -> dict[str, list[str]]:
            return {"written": [write(block)] if block.num_rows else []}

        blocks = dataset(function, items).sort("key")
        for row in blocks.map_batches(write_block, batch_size=None, batch_format="pyarrow").iter_rows():
            yield row["written"]
        return
    with tempfile.TemporaryDirectory(prefix="txclf-sort-") as folder:
        paths = [os.path.join(folder, str(number)) for number in range(num_partitions)]
        with ExitStack() as stack:
            writers: list[Any] = []
            for table in tables(function, items, on_ray=False):
                if not writers:
                    writers = [stack.enter_context(pa.ipc.new_stream(path, table.schema)) for path in paths]
                partitions = (table["key"].to_numpy() / 2.0**64 * num_partitions).astype(np.int64)
                for number in np.unique(partitions):
                    writers[number].write_table(table.filter(pa.array(partitions == number)))
        for path in filter(os.path.exists, paths):
            with pa.memory_map(path) as file, pa.ipc.open_stream(file) as reader:
                table = reader.read_all()
                if table.num_rows:
                    yield write(table)

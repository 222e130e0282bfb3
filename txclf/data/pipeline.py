"""Plain functions over items (files, shards), in this process or as stages of Ray Data: the same tables either way."""

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
    """A Ray Data dataset of the tables that `function` yields of each item, in the order of the items."""
    import ray

    ray.data.DataContext.get_current().execution_options.preserve_order = True

    def read(batch: dict[str, Any]) -> Tables:
        for number in batch["id"]:
            yield from function(items[number])

    return ray.data.range(len(items), override_num_blocks=len(items)).map_batches(read, batch_size=1)


def tables(function: Callable[[Item], Tables], items: Sequence[Item], on_ray: bool) -> Tables:
    """The tables that `function` yields of each item, in the order of the items."""
    if on_ray:
        yield from dataset(function, items).iter_batches(batch_size=None, batch_format="pyarrow")
    else:
        for item in items:
            yield from function(item)


def prefetch(items: Iterator[Item], depth: int = 4) -> Iterator[Item]:
    """The same items, made by a thread up to `depth` ahead of their use."""
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
    on_ray: bool,
    write: Callable[[pa.Table], str],
    num_parts: int,
) -> Iterator[str]:
    """Sorts the rows of all tables by their `key` (uint64, spread evenly) and writes them in parts of disjoint ranges.

    `write` sorts within a part, and what it returns is yielded. In this process the rows go to one local file a part
    first, so memory holds one part (`num_parts` is the number of them); on Ray its sort decides about the parts.
    """
    if on_ray:

        def write_block(block: pa.Table) -> dict[str, list[str]]:
            return {"written": [write(block)] if block.num_rows else []}

        blocks = dataset(function, items).sort("key")
        for row in blocks.map_batches(write_block, batch_size=None, batch_format="pyarrow").iter_rows():
            yield row["written"]
        return
    with tempfile.TemporaryDirectory(prefix="txclf-sort-") as folder:
        paths = [os.path.join(folder, str(part)) for part in range(num_parts)]
        with ExitStack() as stack:
            writers: list[Any] = []
            for table in tables(function, items, on_ray=False):
                if not writers:
                    writers = [stack.enter_context(pa.ipc.new_stream(path, table.schema)) for path in paths]
                places = (table["key"].to_numpy() / 2.0**64 * num_parts).astype(np.int64)
                for part in np.unique(places):
                    writers[part].write_table(table.filter(pa.array(places == part)))
        for path in filter(os.path.exists, paths):
            with pa.memory_map(path) as file, pa.ipc.open_stream(file) as reader:
                table = reader.read_all()
                if table.num_rows:
                    yield write(table)

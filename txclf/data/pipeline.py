"""Run plain functions over items (files, shards), in this process or as stages of Ray Data.

Both ways give the same tables.
"""

from __future__ import annotations

import math
import os
import pickle
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any, NamedTuple, NoReturn, Self, TypeVar, cast

import numpy as np
import pyarrow as pa

from txclf import upstream
from txclf.core.errors import ClusterError, TxclfError

Item = TypeVar("Item")
Tables = Iterator[pa.Table]
NO_PROGRESS_TIMEOUT_S = 120.0
"""Seconds without a table from any task on Ray until the work fails, for example because other work holds every CPU."""
SORT_NO_PROGRESS_TIMEOUT_S = 1800.0
"""The same for a sort, whose tasks pass on larger tables."""
AUTOSCALER_TIMEOUT_S = 3600.0
"""The same where an autoscaler may have to start nodes first."""
FAULT = "fault"
"""Column of a table on Ray that holds an error instead of rows."""
BLOCK_BYTES, BLOCK_SECONDS = 2**20, 10.0
"""A task on Ray yields a table when it has this many bytes, or after this many seconds."""
MAX_OPEN_FILES = 128
"""Files that a sort in this process writes at the same time."""
BUFFER_BYTES = 32 * 2**20
"""Rows that a sort in this process collects before it distributes them to files."""


class Fault(NamedTuple):
    """Error of the user, passed on by a task as a value: Ray Data prints and rewrites an error that is raised."""

    error: TxclfError
    cause: str | None
    """Text of its cause, which may be no object that other processes can read."""

    @classmethod
    def of(cls, error: TxclfError) -> Self:
        """Return the fault of an error."""
        return cls(error, None if error.__cause__ is None else repr(error.__cause__))

    def throw(self) -> NoReturn:
        """Raise the error."""
        raise self.error from (None if self.cause is None else RuntimeError(self.cause))


def dataset(function: Callable[[Item], Tables], items: Sequence[Item]) -> Any:
    """Return a Ray Data dataset of the tables that `function` yields per item, in the order of the items.

    Each task takes one CPU, so the cluster runs at most as many of them as it has CPUs.
    """
    import ray

    def read(batch: dict[str, Any]) -> Tables:
        for number in batch["id"]:
            yield from function(items[number])

    numbers = ray.data.range(len(items), override_num_blocks=len(items))
    numbers.context.execution_options.preserve_order = True
    return numbers.map_batches(read, batch_size=1)


def tables(function: Callable[[Item], Tables], items: Sequence[Item], on_ray: bool) -> Tables:
    """Yield the tables that `function` yields per item, in the order of the items. On Ray, small tables are joined.

    Raises the `TxclfError` of a task, and `ClusterError` if no task makes progress for `NO_PROGRESS_TIMEOUT_S`.
    """
    if not on_ray:
        for item in items:
            yield from function(item)
        return

    def packed(item: Item) -> Tables:
        for table in _guarded(_joined(function(item), BLOCK_BYTES, BLOCK_SECONDS)):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            yield pa.table({"table": pa.array([sink.getvalue().to_pybytes()], pa.large_binary())})

    blocks = dataset(packed, items)
    blocks.context.target_max_block_size = 1  # one row per block, so that Ray passes each on at once
    for block in _blocks(blocks, NO_PROGRESS_TIMEOUT_S):
        for cell in block["table"]:
            table = pa.ipc.open_stream(cell.as_buffer()).read_all()
            _raise_fault(table)
            yield table


def _blocks(blocks: Any, timeout: float) -> Tables:
    """Yield the blocks of a dataset. Raises `ClusterError` as `explained` does."""
    timeout = AUTOSCALER_TIMEOUT_S if upstream.has_autoscaler() else timeout
    blocks.context.execution_no_progress_timeout_s = timeout
    with explained("preparing", timeout, "Run the command again."):
        yield from blocks.iter_batches(batch_size=None, batch_format="pyarrow")


def _guarded(rows: Tables) -> Tables:
    """Yield the same rows; an error of the user as a table."""
    try:
        yield from rows
    except TxclfError as error:
        yield pa.table({"key": pa.array([0], pa.uint64()), FAULT: [pickle.dumps(Fault.of(error))]})


def _raise_fault(table: pa.Table) -> None:
    """Raise the error that a table holds, if any."""
    for fault in table[FAULT].drop_null() if FAULT in table.column_names else ():  # a sort adds the column to all rows
        pickle.loads(fault.as_py()).throw()


@contextmanager
def explained(work: str, timeout: float, advice: str) -> Iterator[None]:
    """Raise `ClusterError` where Ray Data does not finish: no progress for `timeout` seconds, or too many deaths."""
    import ray
    from ray.data.exceptions import ExecutionTimeoutError

    try:
        yield
    except ray.exceptions.RayTaskError:
        raise  # a bug: keep its traceback
    except ExecutionTimeoutError:
        raise no_progress(work, timeout) from None
    except ray.exceptions.RayError as error:
        raise ClusterError(f"{work} failed on Ray: {error}. {advice}") from None


def no_progress(what: str, seconds: float) -> ClusterError:
    """Return the error for work on Ray that stands still, with the free CPUs."""
    import ray

    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return ClusterError(
        f"`compute`: {what} made no progress on Ray for {seconds:g} s, and Ray has {free.get('CPU', 0):g} of "
        f"{total.get('CPU', 0):g} CPUs free. Wait until other work on the cluster ends, or add nodes."
    )


def prefetch(items: Iterator[Item], depth: int = 4) -> Iterator[Item]:
    """Yield the same items, produced by a thread up to `depth` items ahead."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, items, end) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(pool.submit(next, items, end))
                yield cast(Item, item)
                del item  # before the next one comes
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
    On Ray, Ray Data sorts into the same partitions, and cuts those that are larger than its blocks.

    Raises the `TxclfError` of a task, and `ClusterError` if no task makes progress for `SORT_NO_PROGRESS_TIMEOUT_S`.
    """
    if on_ray:

        def read(item: Item) -> Tables:
            return _guarded(function(item))

        def written(block: pa.Table) -> Tables:
            _raise_fault(block)
            yield pa.table({"written": [write(block)]})

        def write_block(block: pa.Table) -> Tables:
            yield from _guarded(written(block)) if block.num_rows else ()

        boundaries = [number * 2**64 // num_partitions for number in range(1, num_partitions)]
        # Without a boundary Ray would draw some; the rows before the first one are none.
        ordered = dataset(read, items).sort("key", boundaries=boundaries or [0])
        blocks = ordered.map_batches(write_block, batch_size=None, batch_format="pyarrow")
        for table in _blocks(blocks, SORT_NO_PROGRESS_TIMEOUT_S):
            _raise_fault(table)
            yield from table["written"].to_pylist()
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
        for table in _joined(rows, BUFFER_BYTES):
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


def _joined(rows: Tables, min_bytes: int, max_seconds: float = math.inf) -> Tables:
    """Yield the same rows in tables of at least `min_bytes`, or less after `max_seconds` and at the end."""
    waiting: list[pa.Table] = []
    num_bytes, start = 0, time.monotonic()
    for table in rows:
        waiting.append(table)
        num_bytes += table.nbytes
        if num_bytes >= min_bytes or time.monotonic() - start >= max_seconds:
            yield pa.concat_tables(waiting)
            waiting, num_bytes, start = [], 0, time.monotonic()
    if waiting:
        yield pa.concat_tables(waiting)

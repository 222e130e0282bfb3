"""The shards of a run as streams of Ray Data to the workers of Ray Train.

    from_items    numbers of the windows still to train, chosen whenever a group of workers starts
      ─▶ map_batches      a task reads a window and cuts it into one block per rank
      ─▶ streaming_split  block r of a window goes to rank r

A worker holds its own rows of a few windows, wherever they were read. A group that starts reads from the window of the
last committed step. The stream lasts for the rest of the run, so workers do not wait for each other between epochs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pyarrow as pa
import ray
from ray.data import ExecutionResources, TaskPoolStrategy
from ray.train import DataConfig, get_dataset_shard

from txclf import ray_cluster
from txclf.artifacts import checkpoints
from txclf.core import storage
from txclf.data import window_blocks
from txclf.data.batches import Rows
from txclf.data.window_reader import Reader, Window
from txclf.training.job import WorkerConfig

BUFFERED_WINDOWS = 8
"""Windows per reading task that limit the object store. Ray Data fills about a quarter of a limit."""


def datasets(config: WorkerConfig) -> dict[str, Any]:
    """Return the datasets of a run for Ray Train, which calls them at each start of a group of workers."""

    def train() -> Any:
        windows = config.train_reader().windows
        saved = checkpoints.last_intact(storage.join(config.run.run_folder, "checkpoints")).checkpoint
        first = windows.window_of(saved.step if saved else 0)
        return _numbers(range(first, max(first + 1, windows.windows_per_epoch * config.run.train.epochs)))

    def valid() -> Any:
        return _numbers(range(config.scoring_reader("valid").num_windows))

    return {"train": train, "valid": valid}


def _numbers(numbers: range) -> Any:
    return ray.data.from_items([{"window": number} for number in numbers], override_num_blocks=len(numbers))


class WindowsDataConfig(DataConfig):
    """The `DataConfig` that turns window numbers into blocks of rows, one per rank."""

    def __init__(self, config: WorkerConfig) -> None:
        super().__init__()
        self.readers: dict[str, Reader] = {
            "train": config.train_reader(),
            "valid": config.scoring_reader("valid"),
        }

    def configure(
        self,
        datasets: dict[str, Any],
        world_size: int,
        worker_handles: Any,
        worker_node_ids: Any,
        **kwargs: Any,
    ) -> list[dict[str, Any]]:
        """Return the streams of each rank."""
        output: list[dict[str, Any]] = [{} for _ in range(world_size)]
        for name, numbers in datasets.items():
            context = numbers.context
            # The splitter gives a block to the rank that has the fewest rows. Blocks of one row, in order, go round.
            context.execution_options.preserve_order = True
            context.target_max_block_size = 1
            # A pause of the workers, as in a validation, is no progress of the stream either.
            context.execution_no_progress_timeout_s = -1
            reader, num_readers = self.readers[name], ray_cluster.num_readers()
            window_bytes = reader.num_bytes // reader.num_windows
            limit = num_readers * BUFFERED_WINDOWS * max(window_bytes, 2**20)
            context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=limit)
            blocks = numbers.map_batches(
                window_blocks.cut(reader, world_size),
                batch_size=1,
                # No CPU, because the workers may hold them all. Without a size all windows are read at once.
                num_cpus=0,
                compute=TaskPoolStrategy(num_readers),
                scheduling_strategy="SPREAD",
            )
            for rank, stream in enumerate(blocks.streaming_split(world_size, equal=False)):
                output[rank][name] = stream
        return output


class RayWindows:
    """Source of the windows of one worker of Ray Train.

    The first window is read while the worker imports what it needs, the first validation rows while it trains: both
    wait for processes of Ray to start.
    """

    def __init__(self, config: WorkerConfig) -> None:
        self._train, self._valid = config.train_reader(), config.scoring_reader("valid")
        self._begun, self._is_training = {"train": _begin("train")}, False
        self._valid_rows: list[Rows] = []
        """The validation rows of this rank, if they fit one window."""

    def train(self, steps: range, rank: int, world_size: int) -> Iterator[Window]:
        """Yield the windows of these steps."""
        expected = self._train.windows.window_of(steps.start)
        for number, table in self._received("train", rank):
            if not self._is_training:
                self._is_training, self._begun["valid"] = True, _begin("valid")
            if number < expected:  # the step of a checkpoint that came after the stream was set up
                continue
            assert number == expected, f"window {number} came instead of {expected}"
            yield self._train.window(number, table)
            del table
            expected += 1
            if self._train.windows.steps(number).stop >= steps.stop:
                return

    def scoring(self, split: str, rank: int, world_size: int) -> Iterator[Rows]:
        """Yield this rank's validation rows."""
        if self._valid_rows:
            yield from self._valid_rows
            return
        for _, table in self._received(split, rank):
            rows = self._valid.rows([table])
            if self._valid.num_windows == 1:
                self._valid_rows = [rows]
            yield rows

    def _received(self, split: str, rank: int) -> Iterator[tuple[int, pa.Table]]:
        """Yield the window numbers and rows of the blocks that this rank receives.

        Raises the error of a reading task.
        """
        begun = self._begun.pop(split, None)
        first, blocks = begun.result() if begun else (None, _blocks(split))
        if first is not None:
            yield window_blocks.unpack(first, rank)
            del first
        for block in blocks:
            yield window_blocks.unpack(block, rank)


def _blocks(split: str) -> Iterator[pa.Table]:
    """Yield the blocks of a split that this worker receives."""
    return iter(get_dataset_shard(split).iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1))


def _begin(split: str) -> Future[tuple[pa.Table | None, Iterator[pa.Table]]]:
    """Receive the first block of a split in a thread; the result is the block and an iterator over the others."""
    found: Future[tuple[pa.Table | None, Iterator[pa.Table]]] = Future()

    def receive() -> None:
        try:
            blocks = _blocks(split)
            found.set_result((next(blocks, None), blocks))
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=receive, name=f"first-{split}", daemon=True).start()
    return found

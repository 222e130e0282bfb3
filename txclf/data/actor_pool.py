"""Answer chunks on Ray: tasks read them, and a pool of actors with one model each answers them.

Ray Data streams the chunks to the actors, restarts what dies, answers a lost chunk again, and applies backpressure to
the readers. Each chunk is one row of the stream, so it is never split.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, Generic, TypeVar

from txclf.config.sections import Compute
from txclf.core import devices
from txclf.core.errors import TxclfError
from txclf.data import pipeline
from txclf.data.pipeline import Fault

NO_PROGRESS_TIMEOUT_S = 3600
"""Seconds without an answer until the work fails. Until then Ray replaces actors that die, for example because the
model does not fit their memory."""

Chunk = TypeVar("Chunk")
Answer = TypeVar("Answer")
Model = Callable[[Chunk], Answer]


class Actor(Generic[Chunk, Answer]):
    """Ray actor that holds one model."""

    def __init__(self, load: Callable[[], Model[Chunk, Answer]], compute: Compute) -> None:
        devices.take(compute.cpus_per_worker, compute.gpus_per_worker)
        self.load, self.gpus = load, compute.gpus_per_worker

    @cached_property
    def model(self) -> Model[Chunk, Answer]:
        """Load the model for the first chunk, so that its error is that of the chunk."""
        devices.require(self.gpus)
        return self.load()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Answer the chunk of a row."""
        content = pickle.loads(row["content"])
        if isinstance(content, Fault):
            return row
        try:
            return _row(self.model(content))
        except TxclfError as error:
            return _row(Fault.of(error))


def _row(content: object) -> dict[str, Any]:
    """Return a chunk, an answer or a fault as a row of the stream."""
    return {"content": pickle.dumps(content)}


def answers(
    read: Callable[[int], Iterator[Chunk]],
    load: Callable[[], Model[Chunk, Answer]],
    compute: Compute,
    *,
    num_sources: int,
    num_readers: int,
    max_chunks: float = math.inf,
    work: str,
    advice: str,
) -> Iterator[Answer]:
    """Answer all chunks on the Ray that this process is connected to, and yield the answers in any order.

    `read` yields the chunks of the source with a number, `load` returns the function that answers a chunk. `work` and
    `advice` are part of the message of an error.

    Raises `ClusterError` if actors or nodes die too often or no chunk is answered for `NO_PROGRESS_TIMEOUT_S`, and the
    `TxclfError` of a source or chunk.
    """
    import ray

    def chunks(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        try:
            yield from map(_row, read(row["item"]))
        except TxclfError as error:
            yield _row(Fault.of(error))

    items = ray.data.from_items(list(range(num_sources)), override_num_blocks=num_sources)
    items.context.execution_options.preserve_order = False
    items.context.target_max_block_size = 1  # one block per chunk, so an actor gets each chunk at once
    items.context.execution_no_progress_timeout_s = NO_PROGRESS_TIMEOUT_S
    answered = items.flat_map(
        chunks,
        # Zero, so that the actors may use every CPU, and so that the resources differ from those of the actors:
        # with equal resources Ray Data would fuse both stages, and a single file would keep only one actor busy.
        num_cpus=0,
        compute=ray.data.TaskPoolStrategy(min(num_sources, num_readers)),
    ).map(
        Actor,  # type: ignore[arg-type]
        fn_constructor_args=(load, compute),
        num_cpus=compute.cpus_per_worker,
        num_gpus=compute.gpus_per_worker or None,
        compute=ray.data.ActorPoolStrategy(size=int(min(compute.max_workers, max_chunks))),
    )
    with pipeline.explained(work, NO_PROGRESS_TIMEOUT_S, advice):
        for row in answered.iter_rows():
            content = pickle.loads(row["content"])
            if isinstance(content, Fault):
                content.throw()
            yield content

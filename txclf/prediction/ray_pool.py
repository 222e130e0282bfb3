"""Prediction on Ray: tasks read chunks, and a pool of actors with one model each predicts them.

Ray Data streams chunks from the tasks to the actors, restarts what dies, and applies backpressure to the readers. Each
chunk is one row of the stream, so it is never split. Actors write the part files to storage and return only counts.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from txclf.config.sections import Compute
from txclf.core.errors import ClusterError, TxclfError
from txclf.data import pipeline
from txclf.data.records import RawBatch
from txclf.data.sources import Source
from txclf.prediction import parts
from txclf.prediction.columns import Answer
from txclf.prediction.parts import ChunkKey, Count, PredictionPlan

NO_PROGRESS_TIMEOUT_S = 3600
"""Seconds without a finished chunk until the prediction fails. Until then Ray replaces workers that die, for example
because the model does not fit their memory."""


class Worker:
    """Ray actor that holds one model."""

    def __init__(self, plan: PredictionPlan, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.plan = plan

    @cached_property
    def answer(self) -> Answer:
        """Load the model for the first chunk, so that its error is that of the chunk."""
        return self.plan.load_answer()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Predict the chunk of a row and return its count; errors of the user are returned as `Fault`."""
        content, key = pickle.loads(row["content"]), ChunkKey(row["source"], row["number"])
        if isinstance(content, Fault):
            return row
        try:
            count = parts.write(self.plan, self.answer, key, content)
            parts.trim_memory()
            return _row(key, count)
        except TxclfError as error:
            return _row(key, Fault(error, error.__cause__))


class Fault(NamedTuple):
    """Error that the user can fix, passed as a value because Ray Data keeps only the text of a raised error."""

    error: TxclfError
    cause: BaseException | None


def _row(key: ChunkKey, content: RawBatch | Count | Fault) -> dict[str, Any]:
    """Return a chunk, its count or its error as a row of the Ray Data stream."""
    return {"source": key.source, "number": key.number, "content": pickle.dumps(content)}


def run(
    plan: PredictionPlan,
    sources: Sequence[Source],
    compute: Compute,
    finished: dict[ChunkKey, Count],
    on_progress: Callable[[int], None],
) -> None:
    """Predict the missing chunks on Ray and add them to `finished`.

    Raises `ClusterError` if actors or nodes die too often or no chunk is finished for `NO_PROGRESS_TIMEOUT_S`, and the
    `TxclfError` of a chunk that cannot be predicted.
    """
    import ray
    from ray.data.exceptions import ExecutionTimeoutError

    from txclf import ray_cluster

    skipped = set(finished)

    def read(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        number = row["item"]
        try:
            for key, raw in parts.read(number, sources[number], plan.chunk_rows):
                if key not in skipped:
                    yield _row(key, raw)
        except TxclfError as error:
            yield _row(ChunkKey(number, -1), Fault(error, error.__cause__))

    items = ray.data.from_items(list(range(len(sources))), override_num_blocks=len(sources))
    items.context.execution_options.preserve_order = False
    items.context.target_max_block_size = 1  # one block per chunk, so an actor gets each chunk at once
    items.context.execution_no_progress_timeout_s = NO_PROGRESS_TIMEOUT_S
    rows = items.flat_map(
        read,
        # Zero, so that the actors may use every CPU, and so that the resources differ from those of the actors:
        # with equal resources Ray Data would fuse both stages, and a single file would keep only one actor busy.
        num_cpus=0,
        compute=ray.data.TaskPoolStrategy(min(len(sources), ray_cluster.num_readers())),
    )
    counts = rows.map(
        Worker,  # type: ignore[arg-type]
        fn_constructor_args=(plan, max(1, math.floor(compute.cpus_per_worker))),
        num_cpus=compute.cpus_per_worker,
        num_gpus=compute.gpus_per_worker or None,
        compute=ray.data.ActorPoolStrategy(size=compute.max_workers),
    )
    total = sum(count.rows for count in finished.values())
    try:
        for row in counts.iter_rows():
            content = pickle.loads(row["content"])
            if isinstance(content, Fault):
                raise content.error from content.cause
            finished[ChunkKey(row["source"], row["number"])] = content
            total += content.rows
            on_progress(total)
    except ray.exceptions.RayTaskError:
        raise  # a bug: keep its traceback
    except ExecutionTimeoutError:
        raise pipeline.no_progress("the prediction", NO_PROGRESS_TIMEOUT_S) from None
    except ray.exceptions.RayError as error:
        raise ClusterError(
            f"the prediction failed on Ray: {error}. Rerun the command to resume after the finished chunks."
        ) from None

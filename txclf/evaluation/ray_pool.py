"""Evaluation on Ray: a pool of actors with one model each scores the chunks.

Ray Data streams the chunks to the actors, restarts what dies, and scores a lost chunk again. Each chunk is one row of
the stream, so each row is scored once. An actor reads the row groups that it scores; tasks read labelled files.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

from txclf.config.sections import Compute
from txclf.core.errors import ClusterError, TxclfError
from txclf.data import pipeline
from txclf.evaluation.scoring import Chunk, Part, ScoringPlan

NO_PROGRESS_TIMEOUT_S = 3600
"""Seconds without a scored chunk until the evaluation fails. Until then Ray replaces workers that die."""


class Scorer:
    """Ray actor that holds one model."""

    def __init__(self, plan: ScoringPlan, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.plan = plan

    @cached_property
    def score(self) -> Callable[[Chunk], Part]:
        """Load the model for the first chunk, so that its error is that of the chunk."""
        return self.plan.scorer()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Score the chunk of a row; errors of the user are returned."""
        content: Chunk | TxclfError = pickle.loads(row["content"])
        if isinstance(content, TxclfError):
            return row
        try:
            return _row(self.score(content))
        except TxclfError as error:
            return _row(error)


def _row(content: Chunk | Part | TxclfError) -> dict[str, Any]:
    """Return a chunk, its part or its error as a row of the stream; Ray Data keeps only the text of a raised error."""
    return {"content": pickle.dumps(content)}


def score(plan: ScoringPlan, compute: Compute) -> Iterator[Part]:
    """Score all chunks on the Ray that this process is connected to, and yield the parts in any order.

    Raises `ClusterError` if actors or nodes die too often or no chunk is scored for `NO_PROGRESS_TIMEOUT_S`, and the
    `TxclfError` of a chunk that cannot be scored.
    """
    import ray
    from ray.data.exceptions import ExecutionTimeoutError

    from txclf import ray_cluster

    def read(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        try:
            yield from map(_row, plan.chunks(row["item"]))
        except TxclfError as error:
            yield _row(error)

    items = ray.data.from_items(list(range(len(plan.sources))), override_num_blocks=len(plan.sources))
    items.context.execution_options.preserve_order = False
    items.context.target_max_block_size = 1  # one block per chunk, so an actor gets each chunk at once
    items.context.execution_no_progress_timeout_s = NO_PROGRESS_TIMEOUT_S
    readers = min(len(plan.sources), ray_cluster.num_readers())
    # Zero CPUs, so that the actors may use every CPU, and Ray Data does not fuse the two stages.
    chunks = items.flat_map(read, num_cpus=0, compute=ray.data.TaskPoolStrategy(readers))
    scored = chunks.map(
        Scorer,  # type: ignore[arg-type]
        fn_constructor_args=(plan, max(1, math.floor(compute.cpus_per_worker))),
        num_cpus=compute.cpus_per_worker,
        num_gpus=compute.gpus_per_worker or None,
        compute=ray.data.ActorPoolStrategy(size=int(min(compute.max_workers, plan.max_chunks))),
    )
    try:
        for row in scored.iter_rows():
            content = pickle.loads(row["content"])
            if isinstance(content, TxclfError):
                raise content
            yield content
    except ray.exceptions.RayTaskError:
        raise  # a bug: keep its traceback
    except ExecutionTimeoutError:
        raise pipeline.no_progress("the evaluation", NO_PROGRESS_TIMEOUT_S) from None
    except ray.exceptions.RayError as error:
        raise ClusterError(f"the evaluation failed on Ray: {error}. Run the command again.") from None

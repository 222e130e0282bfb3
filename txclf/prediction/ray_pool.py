"""Prediction on Ray: tasks read, a pool of actors, each with a model of its own, makes the parts. Ray Data streams
between them, starts again what dies, and lets no reader run far ahead.

A part passes as one row, so that it stays whole. Of what an actor has made only the count comes back: rows and
predictions go to the storage from where they are made.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from txclf.config.sections import Compute
from txclf.core.errors import ClusterError, TxclfError
from txclf.data.records import RawBatch
from txclf.data.sources import Source
from txclf.prediction import parts
from txclf.prediction.parts import ChunkKey, Count, PredictionPlan

PATIENCE_S = 3600
"""Without a part finished, until prediction gives up; workers that die, as where a model does not fit the memory, are
replaced as long."""


class Worker:
    """A model in an actor."""

    def __init__(self, plan: PredictionPlan, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.plan = plan
        self.answer = plan.load()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Makes a part."""
        part, place = pickle.loads(row["part"]), ChunkKey(row["source"], row["number"])
        if isinstance(part, Fault):
            return row
        try:
            made = parts.make(self.plan, self.answer, place, part)
            parts.give_back()
            return _row(place, made)
        except TxclfError as error:
            return _row(place, Fault(error, error.__cause__))


class Fault(NamedTuple):
    """What a user can mend. It travels as a value, for of what a task raises Ray Data keeps only the text."""

    error: TxclfError
    cause: BaseException | None


def _row(place: ChunkKey, content: RawBatch | Count | Fault) -> dict[str, Any]:
    return {"source": place.source, "number": place.number, "part": pickle.dumps(content)}


def run(
    plan: PredictionPlan,
    sources: Sequence[Source],
    compute: Compute,
    finished: dict[ChunkKey, Count],
    show: Callable[[int], None],
) -> None:
    """Makes the parts that are missing, adding them to `finished` as they come.

    Raises `ClusterError` when actors or nodes die too often, and what they raise of what a user can mend.
    """
    import ray
    from ray.data.exceptions import ExecutionTimeoutError

    known = set(finished)

    def read(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        number = row["item"]
        try:
            for place, raw in parts.read(number, sources[number], plan.chunk_rows):
                if place not in known:
                    yield _row(place, raw)
        except TxclfError as error:
            yield _row(ChunkKey(number, -1), Fault(error, error.__cause__))

    items = ray.data.from_items(list(range(len(sources))), override_num_blocks=len(sources))
    items.context.execution_options.preserve_order = False
    items.context.target_max_block_size = 1  # a block a part: it goes to an actor as soon as it is read
    items.context.execution_no_progress_timeout_s = PATIENCE_S
    rows = items.flat_map(
        read,
        # So that actors may have every CPU. Not as many as they ask for, or Ray Data would read and predict in one
        # task, and a single file would keep one actor busy.
        num_cpus=0,
    )
    made = rows.map(
        Worker,  # type: ignore[arg-type]
        fn_constructor_args=(plan, max(1, math.floor(compute.cpus_per_worker))),
        num_cpus=compute.cpus_per_worker,
        num_gpus=compute.gpus_per_worker or None,
        compute=ray.data.ActorPoolStrategy(size=compute.max_workers),
    )
    total = sum(count.rows for count in finished.values())
    try:
        for row in made.iter_rows():
            content = pickle.loads(row["part"])
            if isinstance(content, Fault):
                raise content.error from content.cause
            finished[ChunkKey(row["source"], row["number"])] = content
            total += content.rows
            show(total)
    except ray.exceptions.RayTaskError:
        raise  # a defect
    except (ray.exceptions.RayError, ExecutionTimeoutError) as error:
        raise ClusterError(
            f"prediction stopped: {error}: ask again to go on with the parts that are finished"
        ) from None

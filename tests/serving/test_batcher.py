"""Dynamic batching: batch sizes, concurrency, full queues, failures and cancelled requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest

from txclf.serving.batcher import Answers, DynamicBatcher, QueueFull
from txclf.serving.occlusion import Row


class Model:
    """Model that answers each row with its own text once `free` is set, and records the batches."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.cancelled = 0
        self.free = asyncio.Event()

    async def ask(self, rows: Sequence[Row]) -> Answers:
        texts = [row[0] for row in rows]
        self.batches.append(texts)
        try:
            await self.free.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if "bad" in texts:
            raise ValueError(f"{len(texts)} rows")
        return Answers(np.empty((len(rows), 0), np.float32), [], texts, len(rows), 0.0)


def start_request(batcher: DynamicBatcher, *texts: str) -> asyncio.Task[Answers]:
    """Start a request without waiting for its answer."""
    return asyncio.create_task(batcher.answer([(text,) for text in texts]))


async def settle() -> None:
    """Let every task that can run proceed."""
    for _ in range(5):
        await asyncio.sleep(0)


def run(case: Callable[[Model], Coroutine[Any, Any, None]]) -> None:
    """Run a case with a new model in an event loop."""

    async def main() -> None:
        await case(Model())

    asyncio.run(main())


def test_batcher_with_two_in_flight_batches_the_queue() -> None:
    async def case(model: Model) -> None:
        batcher = DynamicBatcher(model.ask, max_batch_size=3, max_in_flight=lambda: 2)
        tasks = []
        for name in "abcdefg":
            tasks.append(start_request(batcher, name))
            await settle()
        assert model.batches == [["a"], ["b"]]
        model.free.set()
        assert [(await task).outputs for task in tasks] == [[name] for name in "abcdefg"]
        assert model.batches == [["a"], ["b"], ["c", "d", "e"], ["f", "g"]]
        await settle()
        assert not batcher.running
        assert (await batcher.answer([("x",)] * 5)).outputs == ["x"] * 5  # more than a batch

    run(case)


def test_batcher_full_queue_refuses_and_failure_is_isolated() -> None:
    async def case(model: Model) -> None:
        batcher = DynamicBatcher(model.ask, max_batch_size=9, max_queue=3)
        first = start_request(batcher, "a")
        await settle()
        rest = [start_request(batcher, name) for name in ("b", "bad", "c")]
        await settle()
        with pytest.raises(QueueFull):
            await batcher.answer([("too many",)])
        model.free.set()
        results = await asyncio.gather(first, *rest, return_exceptions=True)
        assert [str(result) if isinstance(result, ValueError) else result.outputs for result in results] == [  # type: ignore[union-attr]
            ["a"],
            ["b"],
            "1 rows",
            ["c"],
        ]
        assert model.batches == [["a"], ["b", "bad", "c"], ["b"], ["bad"], ["c"]]

    run(case)


def test_batcher_cancelled_requests_are_not_computed() -> None:
    async def case(model: Model) -> None:
        batcher = DynamicBatcher(model.ask, max_batch_size=9)
        first = start_request(batcher, "a")
        await settle()
        second, third = start_request(batcher, "b"), start_request(batcher, "c")
        await settle()
        second.cancel()
        first.cancel()
        await settle()
        assert model.cancelled == 1
        assert model.batches == [["a"], ["c"]]  # the batcher continued with the next request
        fourth, fifth = start_request(batcher, "d"), start_request(batcher, "e")
        model.free.set()
        assert [(await task).outputs for task in (third, fourth, fifth)] == [["c"], ["d"], ["e"]]
        assert model.batches[2:] == [["d", "e"]]

    run(case)

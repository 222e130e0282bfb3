"""Requests that wait are answered together: in whole batches, in lanes, and none harmed by its neighbours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest

from txclf.serving.batcher import Answers, DynamicBatcher, QueueFull
from txclf.serving.occlusion import Row


class Model:
    """Answers each row with its own text, when it is let; remembers the batches."""

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


def asked(batcher: DynamicBatcher, *texts: str) -> asyncio.Task[Answers]:
    return asyncio.create_task(batcher.answer([(text,) for text in texts]))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def run(case: Callable[[Model], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        await case(Model())

    asyncio.run(whole())


def test_each_lane_takes_what_waits() -> None:
    async def case(model: Model) -> None:
        batcher = DynamicBatcher(model.ask, max_batch_size=3, max_in_flight=lambda: 2)
        tasks = []
        for name in "abcdefg":
            tasks.append(asked(batcher, name))
            await settle()
        assert model.batches == [["a"], ["b"]]
        model.free.set()
        assert [(await task).outputs for task in tasks] == [[name] for name in "abcdefg"]
        assert model.batches == [["a"], ["b"], ["c", "d", "e"], ["f", "g"]]
        await settle()
        assert not batcher.running
        assert (await batcher.answer([("x",)] * 5)).outputs == ["x"] * 5  # more than a batch

    run(case)


def test_too_many_are_refused_and_one_that_breaks_is_alone() -> None:
    async def case(model: Model) -> None:
        batcher = DynamicBatcher(model.ask, max_batch_size=9, max_queue=3)
        first = asked(batcher, "a")
        await settle()
        rest = [asked(batcher, name) for name in ("b", "bad", "c")]
        await settle()
        with pytest.raises(QueueFull):
            await batcher.answer([("too many",)])
        model.free.set()
        found = await asyncio.gather(first, *rest, return_exceptions=True)
        assert [str(one) if isinstance(one, ValueError) else one.outputs for one in found] == [  # type: ignore[union-attr]
            ["a"],
            ["b"],
            "1 rows",
            ["c"],
        ]
        assert model.batches == [["a"], ["b", "bad", "c"], ["b"], ["bad"], ["c"]]

    run(case)


def test_what_nobody_waits_for_is_not_computed() -> None:
    async def case(model: Model) -> None:
        batcher = DynamicBatcher(model.ask, max_batch_size=9)
        first = asked(batcher, "a")
        await settle()
        second, third = asked(batcher, "b"), asked(batcher, "c")
        await settle()
        second.cancel()
        first.cancel()
        await settle()
        assert model.cancelled == 1
        assert model.batches == [["a"], ["c"]]  # the lane went on
        fourth, fifth = asked(batcher, "d"), asked(batcher, "e")
        model.free.set()
        assert [(await task).outputs for task in (third, fourth, fifth)] == [["c"], ["d"], ["e"]]
        assert model.batches[2:] == [["d", "e"]]

    run(case)

"""Dynamic batching: batch sizes, concurrency, full queues, failures and cancelled requests."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from txclf.inference.occlusion import Row
from txclf.serving.batcher import Answers, DynamicBatcher, QueueFull


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


def test_batcher_request_right_after_an_answer_is_computed() -> None:
    async def case(model: Model) -> None:
        batcher = DynamicBatcher(model.ask, max_batch_size=3)
        model.free.set()
        for name in "abc":  # without a step of the event loop between the answer and the next request
            assert (await asyncio.wait_for(batcher.answer([(name,)]), 10)).outputs == [name]

    run(case)


def test_batcher_call_that_was_cancelled_ends_its_requests() -> None:
    async def case(model: Model) -> None:
        cancelled: list[bool] = []

        async def ask(rows: Sequence[Row]) -> Answers:
            if not cancelled:
                cancelled.append(True)
                raise asyncio.CancelledError
            return await model.ask(rows)

        batcher = DynamicBatcher(ask, max_batch_size=3)
        model.free.set()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(batcher.answer([("a",)]), 10)
        assert (await asyncio.wait_for(batcher.answer([("b",)]), 10)).outputs == ["b"]

    run(case)


@pytest.mark.parametrize("in_flight", [[1], [3], [1, 4, 2, 0]])
def test_batcher_under_load_answers_every_request(in_flight: list[int]) -> None:
    """Send requests from many threads at a model that computes in threads; some of them are cancelled, some invalid."""
    answered, limits = Counter[str](), itertools.cycle(in_flight)
    ends = time.monotonic() + 2.0

    def compute(texts: list[str]) -> Answers:
        time.sleep(random.choice([0.0, 0.0, 0.0005]))
        if any(text.startswith("bad") for text in texts):
            raise ValueError
        return Answers(np.empty((len(texts), 0), np.float32), [], texts, len(texts), 0.0)

    async def ask(rows: Sequence[Row]) -> Answers:
        return await asyncio.get_running_loop().run_in_executor(None, compute, [row[0] for row in rows])

    def client(number: int, loop: asyncio.AbstractEventLoop, batcher: DynamicBatcher) -> None:
        chance = random.Random(number)
        for count in itertools.count():
            if time.monotonic() > ends:
                return
            texts = [f"{number}-{count}-{row}" for row in range(chance.randrange(1, 6))]
            kind = chance.choice(["good", "good", "good", "bad", "cancelled"])
            request = batcher.answer([(f"bad{text}" if kind == "bad" else text,) for text in texts])
            future = asyncio.run_coroutine_threadsafe(request, loop)
            if kind == "cancelled":
                time.sleep(chance.choice([0.0, 0.0003]))
                future.cancel()
            elif kind == "bad":
                assert isinstance(future.exception(timeout=20), ValueError)
            else:
                assert future.result(timeout=20).outputs == texts
            answered[kind] += 1

    async def main() -> None:
        batcher = DynamicBatcher(ask, max_batch_size=8, max_in_flight=lambda: next(limits))
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(12) as pool:
            # One client alone finds what the requests of others would hide.
            for clients in (1, 12):
                nonlocal ends
                ends = time.monotonic() + 2.0
                await asyncio.gather(
                    *(loop.run_in_executor(pool, client, number, loop, batcher) for number in range(clients))
                )
        await asyncio.sleep(0.1)
        assert not batcher.running
        assert not batcher.queue

    asyncio.run(main())
    assert min(answered[kind] for kind in ("good", "bad", "cancelled")) > 50


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


def test_answer_after_an_error_that_is_no_exception_is_that_of_a_live_batcher() -> None:
    """A worker thread can raise what derives from `BaseException` only, as a Rust panic does."""

    class Panic(BaseException):
        pass

    async def ask(rows: Sequence[Row]) -> Answers:
        if ("bad",) in rows:
            raise Panic
        return Answers(np.empty((len(rows), 0), np.float32), [], [row[0] for row in rows], len(rows), 0.0)

    async def main() -> None:
        batcher = DynamicBatcher(ask, 8)
        results = await asyncio.wait_for(
            asyncio.gather(*(batcher.answer([(text,)]) for text in ("good", "bad", "bad")), return_exceptions=True), 10
        )
        assert [isinstance(result, RuntimeError) for result in results] == [False, True, True]
        assert (await batcher.answer([("good",)])).batch_rows == 1

    asyncio.run(main())

"""Requests that wait are answered together, as soon as whoever answers is free.

No request waits for others to come. While a batch is under way the next ones gather, so batches grow with the load and
a lone request is answered at once. `ray.serve.batch` takes the next batch before the model is free, which cuts what
waits into smaller ones, and it fails a request that is larger than a batch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from txclf.serving.occlusion import Row


class Answers(NamedTuple):
    """What the model says of some rows."""

    probabilities: NDArray[np.float32]
    """(rows, classes); of a `seq2seq` model (rows, 0)."""
    given: list[list[str]]
    """The labels that each row is given, the likeliest first; of a `seq2seq` model none."""
    outputs: list[str]
    """Of a `seq2seq` model, else none."""
    batch_rows: int
    """In the batch that they were answered in."""
    seconds: float
    """That the model took for the batch."""

    def cut(self, start: int, end: int) -> Answers:
        """Those of some rows."""
        return self._replace(
            probabilities=self.probabilities[start:end], given=self.given[start:end], outputs=self.outputs[start:end]
        )


Ask = Callable[[Sequence[Row]], Awaitable[Answers]]
"""Answers rows. Raises `QueueFull` when too many wait, `Unavailable` when nobody can answer."""
Waiting = tuple[Sequence[Row], "asyncio.Future[Answers]"]


class QueueFull(Exception):
    """As many requests wait as may."""


class DynamicBatcher:
    """Dynamic batching: queued requests form the next batch as soon as the model is idle.

    `ask` answers a batch of at most `max_batch_size` rows, or one larger request. At most `max_in_flight()` batches are
    computed at a time.
    """

    def __init__(
        self, ask: Ask, max_batch_size: int, max_queue: int | None = None, max_in_flight: Callable[[], int] = lambda: 1
    ) -> None:
        self.ask, self.max_batch_size, self.max_queue, self.max_in_flight = (
            ask,
            max_batch_size,
            max_queue,
            max_in_flight,
        )
        self.waiting: deque[Waiting] = deque()
        self.running: set[asyncio.Task[None]] = set()

    async def answer(self, rows: Sequence[Row]) -> Answers:
        """Return the answers in the order of the rows.

        Raises `QueueFull` if `max_queue` requests wait already, and whatever `ask` raises.
        """
        if self.max_queue is not None and len(self.waiting) >= self.max_queue:
            raise QueueFull
        future: asyncio.Future[Answers] = asyncio.get_running_loop().create_future()
        self.waiting.append((rows, future))
        if len(self.running) < self.max_in_flight():
            task = asyncio.create_task(self._work())
            self.running.add(task)
            task.add_done_callback(self.running.discard)
        return await future

    async def _work(self) -> None:
        while len(self.running) <= self.max_in_flight() and (batch := self._take()):
            await self._run(batch)

    def _take(self) -> list[Waiting]:
        """The requests that have waited longest, together at most `max_batch_size` rows, but at least one request."""
        batch: list[Waiting] = []
        count = 0
        while self.waiting and (not batch or count + len(self.waiting[0][0]) <= self.max_batch_size):
            rows, future = self.waiting.popleft()
            if not future.done():  # nobody waits any more for one that was cancelled
                batch.append((rows, future))
                count += len(rows)
        return batch

    async def _run(self, batch: Sequence[Waiting]) -> None:
        asked = asyncio.ensure_future(self.ask([row for rows, _ in batch for row in rows]))  # noqa: RUF006 (awaited below)

        def look(_: object) -> None:
            if all(future.done() for _, future in batch):
                asked.cancel()  # nobody waits for it

        for _, future in batch:
            future.add_done_callback(look)
        try:
            answers = await asked
        except asyncio.CancelledError:
            if not all(future.done() for _, future in batch):
                raise
        except Exception as error:
            if len(batch) > 1:  # what breaks one of them does not break its neighbours
                await asyncio.gather(*(self._run([one]) for one in batch))
            elif not batch[0][1].done():
                batch[0][1].set_exception(error)
        else:
            start = 0
            for rows, future in batch:
                if not future.done():
                    future.set_result(answers.cut(start, start + len(rows)))
                start += len(rows)

"""Dynamic batching: queued requests form the next batch as soon as the model is idle.

No request waits for later ones: a lone request is computed at once, and batches grow with the load. `ray.serve.batch`
takes the next batch before the model is idle, which splits the queue into smaller batches, and it fails a request that
is larger than a batch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import accumulate
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from txclf.inference.occlusion import Row


class Answers(NamedTuple):
    """Predictions for a sequence of rows."""

    probabilities: NDArray[np.float32]
    """Class probabilities (rows, classes); (rows, 0) for a `seq2seq` model."""
    labels: list[list[str]]
    """Predicted labels of each row, the most likely first; empty for a `seq2seq` model."""
    outputs: list[str]
    """Generated texts of a `seq2seq` model; empty for other models."""
    batch_rows: int
    """Rows in the batch that the model computed."""
    seconds: float
    """Seconds that the model took for the batch."""

    def rows(self, start: int, end: int) -> Answers:
        """Return the predictions for the rows from `start` to before `end`."""
        return self._replace(
            probabilities=self.probabilities[start:end], labels=self.labels[start:end], outputs=self.outputs[start:end]
        )


Ask = Callable[[Sequence[Row]], Awaitable[Answers]]
"""Computes the answers for rows. Raises `QueueFull` if the queue is full, `Unavailable` if no replica can answer."""
QueuedRequest = tuple[Sequence[Row], "asyncio.Future[Answers]"]


class QueueFull(Exception):
    """The queue holds as many requests as it may."""


class BoundedLane:
    """Limit on requests of one kind: `running` at a time, and at most `waiting` more in a queue.

    Enter it by `async with`. Raises `QueueFull` if the queue is full.
    """

    def __init__(self, running: int, waiting: int) -> None:
        self.capacity = running + waiting
        self.count = 0
        self.running = asyncio.Semaphore(running)

    async def __aenter__(self) -> None:
        if self.count >= self.capacity:
            raise QueueFull
        self.count += 1
        try:
            await self.running.acquire()
        except BaseException:
            self.count -= 1
            raise

    async def __aexit__(self, *error: object) -> None:
        self.running.release()
        self.count -= 1


class DynamicBatcher:
    """Dynamic batching: queued requests form the next batch as soon as the model is idle.

    `ask` computes a batch of at most `max_batch_size` rows, or one larger request. At most `max_in_flight()` batches
    are computed at a time. `max_queue` limits the queued requests; None sets no limit.
    """

    def __init__(
        self,
        ask: Ask,
        max_batch_size: int,
        *,
        max_queue: int | None = None,
        max_in_flight: Callable[[], int] = lambda: 1,
    ) -> None:
        self.ask = ask
        self.max_batch_size = max_batch_size
        self.max_queue = max_queue
        self.max_in_flight = max_in_flight
        self.queue: deque[QueuedRequest] = deque()
        self.running: set[asyncio.Task[None]] = set()

    async def answer(self, rows: Sequence[Row]) -> Answers:
        """Return the answers in the order of the rows.

        Raises `QueueFull` if the queue already holds `max_queue` requests, and any error that `ask` raises.
        """
        if self.max_queue is not None and len(self.queue) >= self.max_queue:
            raise QueueFull
        future: asyncio.Future[Answers] = asyncio.get_running_loop().create_future()
        self.queue.append((rows, future))
        if len(self.running) < max(1, self.max_in_flight()):
            task = asyncio.create_task(self._work())
            self.running.add(task)
            task.add_done_callback(self.running.discard)
        return await future

    async def _work(self) -> None:
        try:
            while len(self.running) <= max(1, self.max_in_flight()) and (batch := self._next_batch()):
                await self._run(batch)
        finally:
            # In the same step of the event loop as the look at the queue. A done callback runs in a later step, and a
            # request that comes between the two would count on this task.
            self.running.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    def _next_batch(self) -> list[QueuedRequest]:
        """Take the oldest requests from the queue: at most `max_batch_size` rows, but at least one request."""
        batch: list[QueuedRequest] = []
        count = 0
        while self.queue and (not batch or count + len(self.queue[0][0]) <= self.max_batch_size):
            rows, future = self.queue.popleft()
            if not future.done():  # a cancelled request is not computed
                batch.append((rows, future))
                count += len(rows)
        return batch

    async def _run(self, batch: Sequence[QueuedRequest]) -> None:
        call = asyncio.ensure_future(self.ask([row for rows, _ in batch for row in rows]))  # noqa: RUF006 (awaited below)

        def cancel_unneeded(_: object) -> None:
            if all(future.done() for _, future in batch):
                call.cancel()

        for _, future in batch:
            future.add_done_callback(cancel_unneeded)
        try:
            answers = await call
            parts = _split(answers, [len(rows) for rows, _ in batch])
        except asyncio.CancelledError:
            for _, future in batch:  # nobody else would end these requests
                future.cancel()
            if not call.cancelled():  # this task was cancelled, not the call
                call.cancel()
                raise
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # also what is no `Exception`, such as a panic of a Rust extension
            if len(batch) > 1:  # an invalid request must not fail its neighbours, so each is computed alone
                await asyncio.gather(*(self._run([request]) for request in batch))
            elif not batch[0][1].done():
                is_usual = isinstance(error, Exception)
                batch[0][1].set_exception(error if is_usual else RuntimeError(f"the model failed: {error!r}"))
        else:
            for part, (_, future) in zip(parts, batch, strict=True):
                if not future.done():
                    future.set_result(part)


def _split(answers: Answers, sizes: Sequence[int]) -> list[Answers]:
    """Return the answers of consecutive requests of these sizes."""
    ends = list(accumulate(sizes))
    return [answers.rows(end - size, end) for size, end in zip(sizes, ends, strict=True)]

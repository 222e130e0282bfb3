"""A bundle that answers requests: what waits is answered together, as soon as the model is free.

No request waits for others to come. While the model works on a batch the next ones gather, so batches grow with the
load and a lone request is answered at once. A batch is sorted and padded by length as the bundle always does, so that
an answer does not depend on what else was in the batch.

`ray.serve.batch` takes the next batch before the model is free, which cuts what waits into smaller ones, and it fails a
request that is larger than a batch.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from txclf import bundle
from txclf.bundle import Classifier, Floats
from txclf.occlusion import Row
from txclf.seq2seq import Seq2Seq


class Answers(NamedTuple):
    """What the model says of some rows."""

    probabilities: Floats
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


class Busy(Exception):
    """As many requests wait as may."""


class Predictor:
    """A bundle in memory. `threads` is how many the model computes with on a CPU."""

    def __init__(self, folder: str, threads: int, gpu: bool, batch_rows: int, queue: int | None = None) -> None:
        # One thread computes, so that two batches do not fight for the cores.
        self.pool = ThreadPoolExecutor(1, "model", torch.set_num_threads, (threads,))
        self.batch_rows, self.queue = batch_rows, queue
        self.model = _load(folder, gpu)
        self.waiting: deque[tuple[Sequence[Row], asyncio.Future[Answers]]] = deque()
        self.work: asyncio.Task[None] | None = None
        text = ("warming up",) * len(self.model.description.text_columns)
        self.pool.submit(self.compute, [text]).result()

    async def answer(self, rows: Sequence[Row]) -> Answers:
        """Answers in the order of the rows. Raises `Busy` when `queue` requests wait already."""
        if self.queue is not None and len(self.waiting) >= self.queue:
            raise Busy
        future: asyncio.Future[Answers] = asyncio.get_running_loop().create_future()
        self.waiting.append((rows, future))
        if self.work is None or self.work.done():
            self.work = asyncio.create_task(self._work())
        return await future

    def compute(self, rows: Sequence[Row]) -> Answers:
        """Answers of one batch, in this thread."""
        start = time.perf_counter()
        if isinstance(self.model, Seq2Seq):
            outputs = self.model.outputs(rows, self.batch_rows)
            found, given = np.empty((len(rows), 0), np.float32), []
        else:
            outputs = []
            found = self.model.probabilities(rows, self.batch_rows)
            given = self.model.given(found)
        return Answers(found, given, outputs, len(rows), time.perf_counter() - start)

    async def _work(self) -> None:
        while batch := self._take():
            await self._run(batch)

    def _take(self) -> list[tuple[Sequence[Row], asyncio.Future[Answers]]]:
        """The requests that have waited longest, together at most `batch_rows` rows, but at least one request."""
        batch: list[tuple[Sequence[Row], asyncio.Future[Answers]]] = []
        count = 0
        while self.waiting and (not batch or count + len(self.waiting[0][0]) <= self.batch_rows):
            rows, future = self.waiting.popleft()
            if not future.done():  # nobody waits any more for one that was cancelled
                batch.append((rows, future))
                count += len(rows)
        return batch

    async def _run(self, batch: Sequence[tuple[Sequence[Row], asyncio.Future[Answers]]]) -> None:
        rows = [row for some, _ in batch for row in some]
        call: Callable[[Sequence[Row]], Answers] = self.compute
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self.pool, call, rows)
        except Exception as error:
            if len(batch) == 1:
                if not batch[0][1].done():
                    batch[0][1].set_exception(error)
                return
            for one in batch:  # what breaks one of them does not break its neighbours
                await self._run([one])
            return
        start = 0
        for some, future in batch:
            if not future.done():
                future.set_result(answers.cut(start, start + len(some)))
            start += len(some)


def _load(folder: str, gpu: bool) -> Classifier | Seq2Seq:
    seq2seq = bundle.describe(folder).task == "seq2seq"
    model: Classifier | Seq2Seq = Seq2Seq.load(folder) if seq2seq else Classifier.load(folder)
    if not gpu:
        model.model.cpu()
        model.device = torch.device("cpu")
    return model

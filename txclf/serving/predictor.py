"""A bundle that answers requests, a batch at a time.

A batch is sorted and padded by length as the bundle always does, so that an answer does not depend on what else was in
the batch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from txclf.inference import bundle
from txclf.inference.classifier import Classifier
from txclf.inference.seq2seq import Seq2Seq
from txclf.serving.batcher import Answers, DynamicBatcher
from txclf.serving.occlusion import Row


class Predictor:
    """A bundle in memory. `threads` is how many the model computes with on a CPU."""

    def __init__(self, folder: str, threads: int, gpu: bool, max_batch_size: int, max_queue: int | None = None) -> None:
        # One thread computes, so that two batches do not fight for the cores.
        self.pool = ThreadPoolExecutor(1, "model", torch.set_num_threads, (threads,))
        self.max_batch_size = max_batch_size
        self.batcher = DynamicBatcher(self._compute, max_batch_size, max_queue)
        self.model = _load(folder, gpu)
        text = ("warming up",) * len(self.model.description.text_columns)
        self.pool.submit(self.compute, [text]).result()

    async def answer(self, rows: Sequence[Row]) -> Answers:
        """Answers in the order of the rows. Raises `Busy` when `max_queue` requests wait already."""
        return await self.batcher.answer(rows)

    def compute(self, rows: Sequence[Row]) -> Answers:
        """Answers of one batch, in this thread."""
        start = time.perf_counter()
        if isinstance(self.model, Seq2Seq):
            outputs = self.model.outputs(rows, self.max_batch_size)
            found, given = np.empty((len(rows), 0), np.float32), []
        else:
            outputs = []
            found = self.model.probabilities(rows, self.max_batch_size)
            given = self.model.predicted_labels(found)
        return Answers(found, given, outputs, len(rows), time.perf_counter() - start)

    async def _compute(self, rows: Sequence[Row]) -> Answers:
        return await asyncio.get_running_loop().run_in_executor(self.pool, self.compute, rows)


def _load(folder: str, gpu: bool) -> Classifier | Seq2Seq:
    seq2seq = bundle.read_metadata(folder).task == "seq2seq"
    model: Classifier | Seq2Seq = Seq2Seq.load(folder) if seq2seq else Classifier.load(folder)
    if not gpu:
        model.model.cpu()
        model.device = torch.device("cpu")
    return model

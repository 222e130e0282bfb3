"""A model bundle in memory that answers requests in batches.

The bundle sorts and pads each batch by length, so an answer does not depend on the other rows of the batch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from txclf.core.errors import ConfigError
from txclf.inference.load import load_model
from txclf.inference.occlusion import Row
from txclf.inference.seq2seq import Seq2Seq
from txclf.serving.batcher import Answers, DynamicBatcher


class Predictor:
    """Model bundle in memory, with a queue of requests. `threads` is the number of CPU threads of the model."""

    def __init__(
        self, folder: str, *, threads: int, use_gpu: bool, max_batch_size: int, max_queue: int | None = None
    ) -> None:
        if use_gpu and not torch.cuda.is_available():
            raise ConfigError("--gpus-per-replica: there is no GPU that PyTorch can use. Remove it to use the CPU.")
        # One worker thread, because two concurrent batches would compete for the cores.
        self.pool = ThreadPoolExecutor(1, "model", torch.set_num_threads, (threads,))
        self.max_batch_size = max_batch_size
        self.batcher = DynamicBatcher(self._compute, max_batch_size, max_queue=max_queue)
        self.model = load_model(folder, None if use_gpu else "cpu")
        text = ("warming up",) * len(self.model.metadata.text_columns)
        self.pool.submit(self.compute, [text]).result()

    async def answer(self, rows: Sequence[Row]) -> Answers:
        """Return the answers in the order of the rows. Raises `QueueFull` if `max_queue` requests are queued."""
        return await self.batcher.answer(rows)

    def compute(self, rows: Sequence[Row]) -> Answers:
        """Return the answers of one batch, computed in the calling thread."""
        start = time.perf_counter()
        outputs: list[str] = []
        labels: list[list[str]] = []
        if isinstance(self.model, Seq2Seq):
            outputs = self.model.outputs(rows, self.max_batch_size)
            probabilities = np.empty((len(rows), 0), np.float32)
        else:
            probabilities = self.model.probabilities(rows, self.max_batch_size)
            labels = self.model.predicted_labels(probabilities)
        return Answers(probabilities, labels, outputs, len(rows), time.perf_counter() - start)

    async def _compute(self, rows: Sequence[Row]) -> Answers:
        return await asyncio.get_running_loop().run_in_executor(self.pool, self.compute, rows)

"""Predictor: a bundle in memory that answers in batches."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.bundles import PANIC, copied, panicking
from tests.helpers.serving import TEXTS, untrained
from txclf import Classifier, Seq2Seq
from txclf.core.errors import BundleError, DataError
from txclf.inference.occlusion import Row
from txclf.serving.batcher import QueueFull
from txclf.serving.predictor import Predictor


def test_predictor_batches_queued_requests(tiny_bundle: str) -> None:
    predictor = Predictor(tiny_bundle, threads=1, use_gpu=False, max_batch_size=4, max_queue=3)
    gate = threading.Event()

    async def ask() -> None:
        predictor.pool.submit(gate.wait)  # keeps the model busy
        first = asyncio.create_task(predictor.answer([("one",)]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        rows: list[list[Row]] = [[("a",), ("b",)], [("c",), ("d",)], [("e",)]]
        queued = [asyncio.create_task(predictor.answer(some)) for some in rows]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await predictor.answer([("too many",)])
        queued[1].cancel()
        await asyncio.sleep(0)
        gate.set()
        assert (await first).batch_rows == 1
        answers = [await queued[0], await queued[2]]
        assert [answer.batch_rows for answer in answers] == [3, 3]  # the cancelled request is not computed
        alone = predictor.compute([("a",), ("b",), ("e",)]).probabilities
        batched = np.concatenate([answer.probabilities for answer in answers])
        np.testing.assert_allclose(batched, alone, atol=1e-6)
        large = await predictor.answer([("x",)] * 9)  # more than a batch
        assert large.probabilities.shape == (9, 3)
        invalid: Any = [(7,)]
        results = await asyncio.gather(
            *(predictor.answer(some) for some in ([("a",)], invalid, [("b",)])), return_exceptions=True
        )
        assert [isinstance(result, Exception) for result in results] == [False, True, False]

    asyncio.run(ask())


def test_answer_of_a_tokenizer_that_panics_raises_and_others_are_answered(tiny_bundle: str, tmp_path: Path) -> None:
    folder = copied(tiny_bundle, tmp_path)
    panicking(folder)
    predictor = Predictor(str(folder), threads=1, use_gpu=False, max_batch_size=4)

    async def ask() -> None:
        rows: list[list[Row]] = [[("fine",)], [(PANIC,)], [("fine too",)], [(PANIC,)]]
        found = await asyncio.wait_for(
            asyncio.gather(*(predictor.answer(some) for some in rows), return_exceptions=True), 20
        )
        assert [isinstance(each, DataError) for each in found] == [False, True, False, True]
        await predictor.answer([("fine",)])

    asyncio.run(ask())


def test_compute_returns_labels_of_a_classifier(tiny_bundle: str) -> None:
    predictor = Predictor(tiny_bundle, threads=1, use_gpu=False, max_batch_size=2)
    answers = predictor.compute([(text,) for text in TEXTS])
    assert answers.labels == [[prediction.label] for prediction in Classifier.load(tiny_bundle)(TEXTS)]
    assert answers.outputs == []
    assert answers.batch_rows == len(TEXTS)


def test_compute_returns_outputs_of_a_seq2seq_model(tmp_path: Path) -> None:
    folder = untrained(tmp_path, task="seq2seq", data={"target": "target"})
    predictor = Predictor(folder, threads=1, use_gpu=False, max_batch_size=2)
    answers = predictor.compute([(text,) for text in TEXTS])
    assert answers.outputs == Seq2Seq.load(folder)(TEXTS)
    assert answers.probabilities.shape == (len(TEXTS), 0)
    assert answers.labels == []


def test_predictor_folder_without_bundle_raises(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a model bundle"):
        Predictor(str(tmp_path), threads=1, use_gpu=False, max_batch_size=2)

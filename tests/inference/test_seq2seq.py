"""Sequence-to-sequence model: outputs, batching, loading."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.helpers.serving import TEXTS, untrained
from txclf import Seq2Seq
from txclf.config import run_config
from txclf.core.errors import BundleError
from txclf.data.batches import PairRows
from txclf.data.tokenizer import encode_targets
from txclf.data.word_cache import WordCache
from txclf.inference import bundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Save an untrained bundle."""
    return untrained(tmp_path_factory.mktemp("bundles"), task="seq2seq", data={"target": "target"})


@pytest.fixture
def model(folder: str) -> Seq2Seq:
    """Load the untrained bundle."""
    return Seq2Seq.load(folder)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_call_outputs_follow_the_order_of_the_texts_for_any_batch_size(model: Seq2Seq, batch_size: int) -> None:
    expected = [model([text])[0] for text in TEXTS]
    assert model(TEXTS, batch_size) == expected
    assert model(TEXTS[::-1], batch_size) == expected[::-1]


def test_call_without_texts_returns_nothing(model: Seq2Seq) -> None:
    assert model([]) == []


def test_call_bare_string_raises_type_error(model: Seq2Seq) -> None:
    with pytest.raises(TypeError, match="expected a list of texts"):
        model("the quick brown fox")


def test_call_rows_of_other_columns_raise_type_error(tmp_path: Path) -> None:
    pairs = Seq2Seq.load(untrained(tmp_path, task="seq2seq", data={"text": ["title", "body"], "target": "target"}))
    for answer in (pairs, pairs.outputs):
        with pytest.raises(TypeError, match=r"^expected 2 text\(s\) per row \(title, body\), not \('fox',\)$"):
            answer(["fox"])
    assert pairs([("the fox", "dog")]) == pairs.outputs([("the fox", "dog")])


def test_load_classifier_bundle_raises(tiny_bundle: str) -> None:
    with pytest.raises(BundleError, match=r"a model of `task: classify`\. Load it with `Classifier\.load`\."):
        Seq2Seq.load(tiny_bundle)


def test_output_ids_respect_max_length(model: Seq2Seq) -> None:
    model.settings = model.settings.model_copy(update={"max_length": 3, "num_beams": 1})
    rows = model.rows([pa.table({"input_ids": model.encode([(text,) for text in TEXTS])})])
    outputs = model.output_ids(rows, np.arange(len(TEXTS)))
    assert len(outputs) == len(TEXTS)
    assert max(map(len, outputs)) <= 3


def test_teacher_forced_untrained_model_is_close_to_chance(model: Seq2Seq) -> None:
    source = model.encode([(text,) for text in TEXTS])
    target, _ = encode_targets(WordCache(model.target_tokenizer), TEXTS, model.metadata.max_length)
    rows = PairRows.from_tables([pa.table({"input_ids": source, "target_ids": target})])
    scores = model.teacher_forced(rows, 2)
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))
    assert scores["loss"] == pytest.approx(math.log(model.metadata.target_vocab_size), rel=0.5)
    assert 0 <= scores["token_accuracy"] < 0.5
    assert scores["teacher_forced_match"] == 0
    assert model.teacher_forced(rows, 64) == pytest.approx(scores)


def test_from_config_gives_the_outputs_of_the_bundle(folder: str, model: Seq2Seq) -> None:
    tokenizer = Path(folder, bundle.TOKENIZER).read_text()
    run = run_config.parse(
        {
            "task": "seq2seq",
            "data": {"target": "target"},
            "tokenizer": {"vocab_size": 300, "max_length": model.metadata.max_length},
            "model": model.metadata.model.model_dump(),
        }
    )
    assert Seq2Seq.from_config(run, model.model.state_dict(), [tokenizer])(TEXTS) == model(TEXTS)

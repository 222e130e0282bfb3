"""Bundles whose files fit their checksums, but whose model cannot answer."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.bundles import PANIC, copied, panicking, rewritten
from tests.helpers.serving import untrained
from txclf import Classifier
from txclf.core.errors import BundleError, DataError, TxclfError
from txclf.inference import bundle, soundness
from txclf.inference.load import load_model

Weights = dict[str, Tensor]


def fill(name: str, value: float, place: Any = ...) -> Callable[[Weights], object]:
    """Return a change that sets numbers of a tensor."""
    return lambda weights: weights[name].__setitem__(place, value)


def cast(dtype: torch.dtype) -> Callable[[Weights], object]:
    """Return a change of the number format of all tensors."""
    return lambda weights: weights.update({name: weight.to(dtype) for name, weight in weights.items()})


def infinite_half(weights: Weights) -> None:
    cast(torch.float16)(weights)
    weights["head.1.bias"][0] = float("inf")


WEIGHTS: dict[str, tuple[Callable[[Weights], object], str]] = {
    "one NaN": (fill("embedding.weight", float("nan"), (3, 5)), "`embedding.weight` has values that are not finite"),
    "infinite": (fill("head.1.bias", float("inf"), 0), "`head.1.bias` has values that are not finite"),
    "both infinities": (
        lambda weights: weights.update({"head.1.bias": torch.tensor([torch.inf, -torch.inf, 0])}),
        "`head.1.bias` has values that are not finite",
    ),
    "infinite in fp16": (infinite_half, "`head.1.bias` has values that are not finite"),
    "huge head": (fill("head.1.weight", 3e38), r"`head\.1\.weight` has values of up to 3e\+38"),
    "one huge embedding": (fill("embedding.weight", 9e29, 7), "gives numbers that are not finite"),
    "integers": (cast(torch.int8), r"holds torch\.int8, not floating-point numbers"),
    "one class": (lambda weights: weights.update({"head.1.bias": torch.zeros(1)}), r"has the shape \[1\], not \[3\]"),
    "no tensors": (lambda weights: weights.clear(), "1 layers, but 0 tensors"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_load_weights_that_give_no_answer_raises(tiny_bundle: str, tmp_path: Path, name: str) -> None:
    change, message = WEIGHTS[name]
    folder = copied(tiny_bundle, tmp_path)
    rewritten(folder, weights=change)
    with pytest.raises(BundleError, match=message):
        Classifier.load(str(folder))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_load_weights_of_another_precision_answers(tiny_bundle: str, tmp_path: Path, dtype: torch.dtype) -> None:
    folder = copied(tiny_bundle, tmp_path)
    rewritten(folder, weights=cast(dtype))
    found, right = (Classifier.load(path)(["the quick fox"])[0].probability for path in (str(folder), tiny_bundle))
    assert found == pytest.approx(right, abs=0.01)


def calibrated(temperature: float) -> dict[str, Any]:
    return {"calibration": {"temperature": temperature, "error_before": 0.1, "error_after": 0.1, "rows": 9}}


METADATA: dict[str, dict[str, Any]] = {
    "temperature 1e-320": calibrated(1e-320),
    "temperature 0": calibrated(0),
    "temperature -1": calibrated(-1),
    "temperature NaN": calibrated(float("nan")),
    "temperature infinite": calibrated(float("inf")),
    "threshold above 1": {"thresholds": {"low": 1.5}},
    "threshold NaN": {"thresholds": {"low": float("nan")}},
    "threshold of no label": {"thresholds": {"other": 0.5}},
    "no text columns": {"text_columns": []},
    "equal text columns": {"text_columns": ["a", "a"]},
    "equal labels": {"labels": ["low", "low", "high"]},
    "labels that are no Unicode": {"labels": ["low", "mid", "\ud800"]},
    "no labels": {"labels": []},
    "more labels": {"labels": ["low", "mid", "high", "top"]},
    "metrics NaN": {"metrics": {"valid_loss": float("nan")}},
    "huge max_length": {"max_length": 10**12},
    "huge vocabulary": {"vocab_size": 10**12},
    "vocabulary beyond 64 bits": {"vocab_size": 10**30},
    "segments": {"num_segments": 10**9},
    "windows": {"truncation": {"mode": "windows", "max_windows": 10**9}},
    "overlap": {"truncation": {"mode": "windows", "window_overlap": 16, "max_windows": 2}},
    "negative overlap": {"truncation": {"mode": "windows", "window_overlap": -(10**9), "max_windows": 2}},
    "special tokens": {"special_tokens": {"prefix": [1], "pad": 0}},
    "file of another folder": {"sha256": {"../../../../dev/zero": ""}},
    "another task": {"task": "seq2seq"},
}


@pytest.mark.parametrize("name", METADATA)
def test_load_metadata_out_of_range_raises(tiny_bundle: str, tmp_path: Path, name: str) -> None:
    folder = copied(tiny_bundle, tmp_path)
    rewritten(folder, metadata=lambda data: data.update(METADATA[name]))
    with pytest.raises(BundleError):
        load_model(str(folder))


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 2**20},
        {"hidden_size": 2**62},
        {"hidden_size": 10**30},
        {"num_layers": 10**9},
        {"intermediate_size": 2**40},
        {"classifier_hidden_size": 2**40},
        {"hidden_size": 2**20, "num_heads": 2**18, "num_layers": 20},
    ],
)
def test_load_sizes_beyond_the_file_take_no_memory(tiny_bundle: str, tmp_path: Path, sizes: dict[str, int]) -> None:
    folder = copied(tiny_bundle, tmp_path)
    rewritten(folder, metadata=lambda data: data["model"].update(sizes))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BundleError):
        Classifier.load(str(folder))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


def tokenizer_of(folder: str) -> Any:
    return json.loads(Path(folder, bundle.TOKENIZER).read_text())


def unknown_word(data: Any) -> None:
    data["model"] = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}
    data["added_tokens"] = []


TOKENIZERS: dict[str, Callable[[Any], object]] = {
    "id beyond the vocabulary": lambda data: data["model"]["vocab"].update(zebra=10**6),
    "unknown kind": lambda data: data["model"].update(type="Other"),
    "no model": lambda data: data.pop("model"),
    "no tokens": lambda data: data.update(added_tokens=[], model={"type": "WordLevel", "vocab": {}, "unk_token": "a"}),
    "no token for unknown words": unknown_word,
    "unigram without tokens": lambda data: data.update(model={"type": "Unigram", "unk_id": 7, "vocab": [["a", 0.0]]}),
    "normalizer that panics when it is read": lambda data: data.update(
        normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    ),
    "splits that panic on any text": lambda data: data.update(pre_tokenizer={"type": "FixedLength", "length": 0}),
    "merges of other tokens": lambda data: data["model"].update(merges=[["x", "yz"]]),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_load_damaged_tokenizer_raises(tiny_bundle: str, tmp_path: Path, name: str) -> None:
    folder = copied(tiny_bundle, tmp_path)
    data = tokenizer_of(tiny_bundle)
    TOKENIZERS[name](data)
    rewritten(folder, files={bundle.TOKENIZER: json.dumps(data).encode()})
    with pytest.raises(BundleError):
        Classifier.load(str(folder))


@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 100_000, b"{}", b"null", b'{"a":' * 50_000])
def test_load_tokenizer_that_is_none_raises(tiny_bundle: str, tmp_path: Path, content: bytes) -> None:
    folder = copied(tiny_bundle, tmp_path)
    rewritten(folder, files={bundle.TOKENIZER: content})
    with pytest.raises(BundleError, match="cannot be read by the `tokenizers` library"):
        Classifier.load(str(folder))


@pytest.mark.parametrize("name", ["embedding.weight", "decoder.0.source_inputs.weight"])
def test_load_seq2seq_model_that_gives_no_answer_raises(tmp_path: Path, name: str) -> None:
    folder = Path(untrained(tmp_path, task="seq2seq", data={"target": "target"}))
    load_model(str(folder))
    rewritten(folder, weights=fill(name, 1e38))
    with pytest.raises(BundleError, match=r"has values of up to 1e\+38"):
        load_model(str(folder))
    rewritten(folder, weights=fill(name, float("nan")))
    with pytest.raises(BundleError, match="has values that are not finite"):
        load_model(str(folder))


def test_load_multilabel_model_that_gives_no_answer_raises(tmp_path: Path) -> None:
    folder = Path(untrained(tmp_path, task="multilabel"))
    rewritten(folder, weights=fill("head.1.weight", 3e38))
    with pytest.raises(BundleError, match=r"`head\.1\.weight` has values of up to 3e\+38"):
        load_model(str(folder))


def test_probabilities_of_a_text_that_overflows_raise(tiny_bundle: str) -> None:
    """A prediction that is not finite is no answer, also when the trial text was fine."""
    classifier = Classifier.load(tiny_bundle)
    with torch.no_grad():
        classifier.model.embedding.weight.fill_(torch.inf)
    with pytest.raises(TxclfError, match="gives numbers that are not finite"):
        classifier(["fox"])


@pytest.mark.parametrize("count", [1, 50])
def test_classifier_whose_tokenizer_panics_on_a_text_raises(tiny_bundle: str, tmp_path: Path, count: int) -> None:
    folder = copied(tiny_bundle, tmp_path)
    panicking(folder)
    classifier = Classifier.load(str(folder))
    classifier(["fine"] * count)
    with pytest.raises(DataError, match=r"the tokenizer fails on a text: .*retry-limit-in-match over"):
        classifier([PANIC, *["fine"] * (count - 1)])


def test_extreme_tokens_are_those_with_the_largest_numbers() -> None:
    embedding = torch.zeros(20, 3)
    embedding[13, 1], embedding[4, 0] = -5.0, 2.0
    assert soundness.extreme_tokens(embedding, 2) == [13, 4]
    assert len(soundness.extreme_tokens(embedding, 100)) == soundness.EXTREME_TOKENS

"""The encoder-decoder is causal, ignores padding, and gives the same logits with its cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.seq2seq_models import VOCABULARY, make_seq2seq, sources

VARIANTS: list[dict[str, Any]] = [
    {},
    {"norm": "post", "position_encoding": "sinusoidal"},
    {"position_encoding": "learned", "tie_embeddings": False, "num_decoder_layers": 1},
    {"position_encoding": "none"},
]


@pytest.mark.parametrize("settings", VARIANTS)
@pytest.mark.parametrize("shared", [True, False])
def test_decode_later_token_changes_no_earlier_logit(settings: dict[str, Any], shared: bool) -> None:
    model, source, target = make_seq2seq(shared, **settings), sources(3, 5), sources(3, 6)
    logits = model(source, None, target)
    changed = target.clone()
    changed[:, 3] = (changed[:, 3] + 1) % VOCABULARY
    other = model(source, None, changed)
    assert torch.equal(logits[:, :3], other[:, :3])
    assert not torch.allclose(logits[:, 3:], other[:, 3:])


@pytest.mark.parametrize("settings", VARIANTS)
def test_forward_padding_changes_no_logit(settings: dict[str, Any]) -> None:
    model, source, target = make_seq2seq(**settings), sources(2, 5), sources(2, 6)
    logits = model(source, None, target)
    padded = torch.cat([source, torch.full((2, 3), 6)], dim=1)
    mask = torch.arange(8).expand(2, 8) < 5
    longer = torch.cat([target, torch.full((2, 2), 5)], dim=1)
    assert torch.allclose(logits, model(padded, mask, longer)[:, :6], atol=1e-5)


@pytest.mark.parametrize("settings", VARIANTS)
def test_decode_token_by_token_equals_forward(settings: dict[str, Any]) -> None:
    model, source, target = make_seq2seq(**settings), sources(3, 5), sources(3, 6)
    memories = model.encode(source, None)
    steps = [model.decode(target[:, i : i + 1], memories, None) for i in range(6)]
    assert torch.allclose(torch.cat(steps, dim=1), model(source, None, target), atol=1e-5)


def test_forward_other_source_changes_logits() -> None:
    model, target = make_seq2seq(), sources(2, 4)
    assert not torch.allclose(model(sources(2, 5), None, target), model(sources(2, 5) % 4 + 3, None, target))


def test_parameters_shared_vocabulary_has_one_matrix() -> None:
    names = dict(make_seq2seq(shared=True).named_parameters())
    assert "target_embedding.weight" not in names
    assert "output.weight" not in names
    assert "output.weight" in dict(make_seq2seq(shared=False, tie_embeddings=False).named_parameters())

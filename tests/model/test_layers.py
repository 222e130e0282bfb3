"""Layers, compared with naive implementations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from txclf.config.sections import Model
from txclf.model.layers import (
    Attention,
    Block,
    Pooling,
    Positions,
    Rotary,
    activation_module,
    sinusoids,
)

POOLINGS = ["mean", "max", "mean_max", "cls", "attention"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def mask_of(*lengths: int) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


# ----------------------------------------------------------------------------------------------------------- positions


def test_sinusoids_equal_the_formula() -> None:
    table = sinusoids(50, 6)
    for place, feature in [(0, 0), (0, 1), (7, 2), (7, 3), (49, 4), (49, 5)]:
        angle = place / 10_000 ** (2 * (feature // 2) / 6)
        expected = math.cos(angle) if feature % 2 else math.sin(angle)
        assert table[place, feature].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["sinusoidal", "learned", "rotary", "none"])
def test_positions_are_the_same_in_every_row(kind: str) -> None:
    positions = Positions(kind, 10, 8)
    added = positions(torch.zeros(3, 7, 8))
    assert added.shape == (3, 7, 8)
    assert torch.equal(added[0], added[2])
    assert bool((added != 0).any()) == (kind in ("sinusoidal", "learned"))
    assert torch.equal(positions(torch.zeros(1, 3, 8))[0], added[0, :3])
    assert [name for name, _ in positions.named_parameters()] == (["table"] if kind == "learned" else [])


@pytest.mark.parametrize("head_width", [2, 4, 16])
def test_rotary_scores_depend_on_distances_only(head_width: int) -> None:
    rotary = Rotary(40, head_width)
    query, key = torch.randn(2, head_width)
    turned_queries = rotary(query.expand(1, 1, 40, -1))[0, 0]
    turned_keys = rotary(key.expand(1, 1, 40, -1))[0, 0]
    products = turned_queries @ turned_keys.T
    for distance in range(-39, 40):
        along = products.diagonal(distance)
        assert (along - along[0]).abs().max() < 1e-4
    firsts = torch.stack([products.diagonal(distance)[0] for distance in range(-39, 40)])
    assert len(set(firsts.round(decimals=3).tolist())) > 30
    assert torch.allclose(turned_queries.norm(dim=-1), query.norm().expand(40), atol=1e-5)
    assert torch.equal(turned_queries[0], query)


def test_rotary_keeps_the_type_and_has_no_parameters() -> None:
    rotary = Rotary(8, 4)
    assert rotary(torch.zeros(1, 2, 3, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert not rotary.state_dict()


# ----------------------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("lengths", [(5, 5), (5, 2), (1, 5)])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_equals_softmax_over_real_tokens(heads: int, lengths: tuple[int, int]) -> None:
    attention = Attention(8, heads, 0.0, None)
    hidden, mask = torch.randn(2, 5, 8), mask_of(*lengths)
    output = attention(hidden, mask[:, None, None, :])
    for row, length in enumerate(lengths):
        query, key, value = attention.inputs(hidden[row, :length]).chunk(3, dim=-1)
        mixed = []
        for part in range(heads):
            own = slice(part * 8 // heads, (part + 1) * 8 // heads)
            weights = (query[:, own] @ key[:, own].T / math.sqrt(8 / heads)).softmax(dim=-1)
            mixed.append(weights @ value[:, own])
        expected = attention.output(torch.cat(mixed, dim=-1))
        assert torch.allclose(output[row, :length], expected, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 2])
def test_rotary_attention_does_not_depend_on_the_start(heads: int) -> None:
    attention, hidden = Attention(8, heads, 0.0, Rotary(12, 8 // heads)), torch.randn(1, 12, 8)
    mask = torch.arange(12)[None] >= 5
    late, early = attention(hidden, mask[:, None, None, :])[:, 5:], attention(hidden[:, 5:], None)
    assert torch.allclose(late, early, atol=1e-5)
    shuffled = attention(hidden[:, 5:].flip(1), None).flip(1)
    assert not torch.allclose(early, shuffled, atol=1e-3)


def test_attention_dropout_only_in_training() -> None:
    attention, hidden = Attention(8, 2, 0.5, None), torch.randn(2, 6, 8)
    assert not torch.equal(attention(hidden, None), attention(hidden, None))
    attention.eval()
    assert torch.equal(attention(hidden, None), attention(hidden, None))


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_block_equals_its_formula(norm: str, activation: str) -> None:
    settings = {
        "hidden_size": 8,
        "num_heads": 2,
        "intermediate_size": 12,
        "dropout": 0.0,
        "norm": norm,
        "activation": activation,
    }
    block = Block(Model.model_validate(settings), None)
    hidden = torch.randn(2, 5, 8)
    act = activation_module(activation)

    def feed(values: Tensor) -> Tensor:
        first, _, second = block.feedforward
        output: Tensor = second(act(first(values)))
        return output

    if norm == "pre":
        middle = hidden + block.attention(block.attention_norm(hidden), None)
        expected = middle + feed(block.feedforward_norm(middle))
    else:
        middle = block.attention_norm(hidden + block.attention(hidden, None))
        expected = block.feedforward_norm(middle + feed(middle))
    output = block(hidden, None)
    assert torch.allclose(output, expected, atol=1e-5)
    # Post-norm blocks end in a norm, pre-norm ones do not.
    assert torch.allclose(output.mean(dim=-1), torch.zeros(2, 5), atol=1e-5) == (norm == "post")


def test_activation_module_returns_gelu_and_relu() -> None:
    values = torch.linspace(-3, 3, 13)
    assert torch.equal(activation_module("gelu")(values), F.gelu(values))
    assert torch.equal(activation_module("relu")(values), values.clamp(min=0))


# ------------------------------------------------------------------------------------------------------------- pooling


@pytest.mark.parametrize("kind", POOLINGS)
def test_pooling_ignores_padding(kind: str) -> None:
    pooling, lengths = Pooling(kind, 6), (4, 1, 3)
    hidden, mask = torch.randn(3, 4, 6) - 5, mask_of(*lengths)  # below 0: a padded zero would win every maximum
    pooled = pooling(hidden.masked_fill(~mask[..., None], 1e6), mask)
    assert pooled.shape == (3, 12 if kind == "mean_max" else 6)
    for row, length in enumerate(lengths):
        own = hidden[row, :length]
        expected = {
            "mean": own.mean(dim=0),
            "max": own.amax(dim=0),
            "mean_max": torch.cat([own.mean(dim=0), own.amax(dim=0)]),
            "cls": own[0],
            "attention": pooling.score(own).softmax(dim=0).T @ own if kind == "attention" else own[0],
        }[kind]
        assert torch.allclose(pooled[row], expected.flatten(), atol=1e-5)


@pytest.mark.parametrize("kind", POOLINGS)
def test_pooling_no_mask_equals_full_mask(kind: str) -> None:
    pooling, hidden = Pooling(kind, 6), torch.randn(3, 4, 6)
    assert torch.allclose(pooling(hidden, None), pooling(hidden, mask_of(4, 4, 4)), atol=1e-6)

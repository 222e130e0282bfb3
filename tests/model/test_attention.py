"""Attention with dropout on a CPU, compared with the formula and with torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from txclf.model import attention
from txclf.model.attention import attend
from txclf.model.dropout import RandomBytes

HEADS, QUERIES, KEYS = 3, 7, 5
MASK = (torch.arange(KEYS) < torch.tensor([KEYS, 2])[:, None])[:, None, None]


def parts(queries: int, keys: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Return query, key and value as a projection gives them, not contiguous."""
    torch.manual_seed(0)

    def part(tokens: int) -> Tensor:
        return torch.randn(2, tokens, HEADS, 4, dtype=dtype).transpose(1, 2).requires_grad_()

    return part(queries), part(keys), part(keys)


def by_hand(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, dropped: int) -> Tensor:
    """Return attention with the same random bytes, computed at once with the derivatives of torch."""
    scores = query @ key.mT / query.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    if causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), float("-inf"))
    drawn = RandomBytes().draw(scores.shape)
    weights: Tensor = scores.softmax(dim=-1) * (drawn >= dropped) * (256 / (256 - dropped))
    return weights @ value


@pytest.mark.parametrize("chunk", [1, 2 * QUERIES * KEYS, 10**9])
@pytest.mark.parametrize("mask", [None, MASK])
def test_attend_values_and_gradients_equal_the_formula(
    monkeypatch: pytest.MonkeyPatch, mask: Tensor | None, chunk: int
) -> None:
    monkeypatch.setattr(attention, "CHUNK", chunk)
    given = parts(QUERIES, KEYS)
    torch.manual_seed(3)
    found = attend(*given, mask, dropout=0.25)
    torch.manual_seed(3)
    expected = by_hand(*given, mask, False, 64)
    torch.testing.assert_close(found, expected)
    slope = torch.randn_like(found)
    ours, theirs = (torch.autograd.grad(one, given, slope) for one in (found, expected))
    for mine, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, wanted)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", [None, MASK])
def test_attend_in_bf16_is_that_of_torch(mask: Tensor | None, causal: bool) -> None:
    exact = parts(KEYS, KEYS, torch.float32)
    rounded = [part.detach().bfloat16().requires_grad_() for part in exact]
    found = attend(rounded[0], rounded[1], rounded[2], mask, causal=causal)
    seen = torch.ones(KEYS, KEYS, dtype=torch.bool)
    seen = (seen.tril() if causal else seen) & (mask if mask is not None else True)
    expected = F.scaled_dot_product_attention(*exact, attn_mask=seen)
    torch.testing.assert_close(found.float(), expected, atol=0.02, rtol=0.02)
    slope = torch.randn_like(expected)
    ours = torch.autograd.grad(found, rounded, slope.bfloat16())
    for mine, wanted in zip(ours, torch.autograd.grad(expected, exact, slope), strict=True):
        torch.testing.assert_close(mine.float(), wanted, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("mask", [None, MASK])
def test_attend_causal_ignores_later_keys(mask: Tensor | None) -> None:
    given = parts(KEYS, KEYS)
    torch.manual_seed(3)
    found = attend(*given, mask, causal=True, dropout=0.5)
    torch.manual_seed(3)
    torch.testing.assert_close(found, by_hand(*given, mask, True, 128))


def test_attend_without_dropout_equals_torch() -> None:
    given = parts(QUERIES, KEYS)
    assert torch.equal(attend(*given, MASK), F.scaled_dot_product_attention(*given, attn_mask=MASK))


def test_attend_mean_over_draws_equals_no_dropout() -> None:
    query, key, value = (part[:1].expand(4000, -1, -1, -1) for part in parts(QUERIES, KEYS, torch.float32))
    dropped, whole = attend(query, key, value, None, dropout=0.25), attend(query, key, value, None)
    torch.testing.assert_close(dropped.mean(dim=0), whole[0], atol=0.05, rtol=0)


def test_attend_seed_makes_dropout_repeatable() -> None:
    given = parts(QUERIES, KEYS)
    torch.manual_seed(7)
    first, second = attend(*given, MASK, dropout=0.5), attend(*given, MASK, dropout=0.5)
    torch.manual_seed(7)
    assert torch.equal(attend(*given, MASK, dropout=0.5), first)
    assert not torch.equal(first, second)


def test_attend_keeps_the_type() -> None:
    given = parts(QUERIES, KEYS, torch.bfloat16)
    found = attend(*given, MASK, dropout=0.1)
    assert found.dtype == torch.bfloat16
    assert all(slope.dtype == torch.bfloat16 for slope in torch.autograd.grad(found.sum(), given))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("length", [1, 8, 52, 130, 512])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.03)])
def test_attend_kernels_agree_at_every_length(dtype: torch.dtype, tolerance: float, length: int, padded: bool) -> None:
    torch.manual_seed(0)
    exact = [torch.randn(2, length, 4, 16, dtype=torch.float64).transpose(1, 2).requires_grad_() for _ in range(3)]
    mask = (torch.arange(length) < torch.tensor([length, max(1, length // 3)])[:, None])[:, None, None]
    rounded = [part.detach().to(dtype).requires_grad_() for part in exact]
    found = attend(rounded[0], rounded[1], rounded[2], mask if padded else None)
    expected = F.scaled_dot_product_attention(exact[0], exact[1], exact[2], attn_mask=mask if padded else None)
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)
    slope = torch.randn_like(expected)
    ours = torch.autograd.grad(found, rounded, slope.to(dtype))
    for mine, wanted in zip(ours, torch.autograd.grad(expected, exact, slope), strict=True):
        torch.testing.assert_close(mine.double(), wanted, atol=2 * tolerance, rtol=2 * tolerance)

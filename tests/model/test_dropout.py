"""Dropout on a CPU: scaling, shapes, seeds and gradients."""

from __future__ import annotations

import pytest
import torch

from txclf.model.dropout import Dropout, RandomBytes


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_scaling_keeps_the_mean(rate: float) -> None:
    kept = Dropout(rate)(torch.ones(200, 500))
    rounded = round(rate * 256) / 256
    assert sorted(set(kept.flatten().tolist())) == pytest.approx([0.0, 1 / (1 - rounded)])
    assert (kept == 0).float().mean().item() == pytest.approx(rounded, abs=0.006)
    assert kept.mean().item() == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (3, 5), (2, 3, 4), (0, 4)])
def test_dropout_accepts_any_shape(shape: tuple[int, ...]) -> None:
    assert Dropout(0.5)(torch.ones(shape)).shape == shape


def test_dropout_accepts_any_memory_layout() -> None:
    values = torch.randn(4, 6)
    torch.manual_seed(1)
    turned = Dropout(0.5)(values.t())
    torch.manual_seed(1)
    assert torch.equal(Dropout(0.5)(values.t().contiguous()), turned)


def test_random_bytes_are_independent() -> None:
    kept = (RandomBytes().draw(torch.Size([100_000])) >= 128).double() * 2 - 1
    assert kept.mean().abs() < 0.02
    for lag in (1, 2, 7, 8, 64):
        assert (kept[lag:] * kept[:-lag]).mean().abs() < 0.02


def test_dropout_seed_makes_it_repeatable_and_calls_differ() -> None:
    dropout, ones = Dropout(0.3), torch.ones(50, 50)
    torch.manual_seed(7)
    first, second = dropout(ones), dropout(ones)
    torch.manual_seed(7)
    assert torch.equal(dropout(ones), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("rate", "training"), [(0.0, True), (0.5, False), (0.0, False)])
def test_dropout_rate_zero_or_evaluation_changes_nothing(rate: float, training: bool) -> None:
    values = torch.randn(5, 5)
    assert Dropout(rate).train(training)(values) is values


def test_dropout_gradient_follows_the_kept_values() -> None:
    values = torch.ones(40, 40, requires_grad=True)
    dropped = Dropout(0.5)(values)
    (gradient,) = torch.autograd.grad(dropped.sum(), values)
    assert torch.equal(gradient, dropped.detach())
    assert Dropout(0.5)(torch.ones(4, dtype=torch.bfloat16)).dtype == torch.bfloat16

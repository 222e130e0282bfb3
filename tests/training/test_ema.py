"""The moving average against its formula, its swap and its state."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from txclf.training.ema import EMA


def test_add_averages_by_the_formula() -> None:
    model = nn.Linear(2, 1, bias=False)
    expected = model.weight.detach().clone()
    average = EMA(model, decay=0.9)
    for step in range(1, 20):
        with torch.no_grad():
            model.weight.add_(0.1 * step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
        average.add(step)
    torch.testing.assert_close(average.state()["weight"], expected)


def test_swap_twice_leaves_model_and_average_as_they_were() -> None:
    model = nn.Linear(3, 2)
    average = EMA(model, decay=0.5, weights={name: torch.zeros_like(p) for name, p in model.named_parameters()})
    before = model.weight.detach().clone()
    average.swap()
    assert not model.weight.detach().any()
    average.swap()
    assert torch.equal(model.weight.detach(), before)
    assert not average.state()["weight"].any()


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(KeyError):
        EMA(nn.Linear(3, 2), 0.5, {"other": torch.zeros(1)})

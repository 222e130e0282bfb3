"""Losses: finite slopes, and the formulas of the papers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from txclf.training.losses import binary_loss, focal_loss


@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.0, 5.0])
def test_focal_loss_gradient_of_a_certain_row_is_finite(gamma: float) -> None:
    logits = torch.tensor([[0.0, 0.0], [200.0, 0.0], [0.0, 200.0], [17.0, 0.0], [1e-6, 0.0]], requires_grad=True)
    loss = focal_loss(logits, torch.zeros(5, dtype=torch.int64), None, gamma)
    (slope,) = torch.autograd.grad(loss, logits)
    assert slope.isfinite().all()
    assert slope[1].tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    assert slope[2].tolist() == pytest.approx([-1.0, 1.0])
    # Of the first row, by hand: d/dz of -(1 - p)^gamma log p at p = 1/2.
    by_hand = (gamma * 0.5**gamma * np.log(0.5) - 0.5**gamma) * 0.5
    assert slope[0, 0].item() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.3, 1.0, 2.0])
def test_binary_focal_loss_gradient_of_a_certain_label_is_finite(gamma: float) -> None:
    logits = torch.tensor([[200.0, -200.0, 17.0, 1e-6]] * 2, requires_grad=True)
    y = torch.tensor([[1.0] * 4, [0.0] * 4])
    (slope,) = torch.autograd.grad(binary_loss(logits, y, focal_gamma=gamma), logits)
    assert slope.isfinite().all()
    assert slope[0, 0].item() == pytest.approx(0.0, abs=1e-6)
    assert slope[0, 1].item() == pytest.approx(-1 / 4)
    assert slope[1, 0].item() == pytest.approx(1 / 4)

"""Losses: finite slopes, and the formulas of the papers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from txclf.training.losses import binary_loss, distillation_loss, focal_loss


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


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_distillation_loss_is_the_divergence_of_softened_probabilities(temperature: float) -> None:
    student, teacher = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    p, q = (torch.softmax(logits / temperature, 1) for logits in (teacher, student))
    expected = temperature**2 * (p * (p / q).log()).sum(1)
    torch.testing.assert_close(
        distillation_loss(student, teacher, temperature).double(), expected, atol=1e-5, rtol=1e-4
    )


def test_distillation_loss_of_several_labels_is_the_mean_of_binary_divergences() -> None:
    student, teacher = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    p, q = torch.sigmoid(teacher / 3), torch.sigmoid(student / 3)
    expected = 9 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean(1)
    found = distillation_loss(student, teacher, 3.0, is_multilabel=True)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("is_multilabel", [False, True])
def test_distillation_loss_has_its_minimum_at_the_teacher(is_multilabel: bool) -> None:
    teacher = torch.randn(5, 4)
    student = teacher.clone().requires_grad_()
    loss = distillation_loss(student, teacher, 2.0, is_multilabel=is_multilabel).sum()
    (slope,) = torch.autograd.grad(loss, student)
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert float(slope.abs().max()) < 1e-6

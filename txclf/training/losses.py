"""Losses summed over the rows of a batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def focal_loss(logits_BC: Tensor, labels_B: Tensor, weights_C: Tensor | None, gamma: float) -> Tensor:
    """Return focal loss (Lin et al., arXiv:1708.02002, equation 5), summed over the rows; `weights_C` are its alpha."""
    logs_BC = F.log_softmax(logits_BC.float(), dim=1)
    losses_B = F.nll_loss(logs_BC, labels_B, weights_C, reduction="none")
    wrong_B = -torch.expm1(logs_BC.gather(1, labels_B[:, None])[:, 0])
    # Where a row is surely right, the slope of a power below 1 is infinite.
    return (wrong_B.clamp(min=1e-12) ** gamma * losses_B).sum()


def binary_loss(
    logits_BC: Tensor,
    targets_BC: Tensor,
    weights_C: Tensor | None = None,
    smoothing: float = 0.0,
    focal_gamma: float = 0.0,
) -> Tensor:
    """Return binary cross-entropy, averaged over the labels and summed over the rows.

    `weights_C` multiply the losses of the rows that have a label. `smoothing` moves targets from 0 and 1 to
    smoothing / 2 and 1 - smoothing / 2. `focal_gamma` is that of focal loss (Lin et al., arXiv:1708.02002, equation 5),
    whose alpha is `weights_C`.
    """
    smooth_BC = targets_BC * (1 - smoothing) + smoothing / 2
    losses_BC = F.binary_cross_entropy_with_logits(logits_BC, smooth_BC, reduction="none")
    if weights_C is not None:  # `pos_weight` would multiply the smoothed share of rows without the label too
        losses_BC = losses_BC * torch.where(targets_BC > 0, weights_C, 1.0)
    if focal_gamma:
        wrong_BC = torch.sigmoid(torch.where(targets_BC > 0, -logits_BC, logits_BC))
        # Where a row is surely right, the slope of a power below 1 is infinite.
        losses_BC = wrong_BC.clamp(min=1e-12) ** focal_gamma * losses_BC
    return losses_BC.mean(dim=1).sum()


def distillation_loss(
    logits_BC: Tensor, teacher_BC: Tensor, temperature: float, *, is_multilabel: bool = False
) -> Tensor:
    """Return temperature^2 x the Kullback-Leibler divergence from the teacher's probabilities, of each row (B,).

    Both logits are divided by the temperature (Hinton et al., arXiv:1503.02531). If multilabel, the divergence is that
    of each label, averaged over the labels.
    """
    student_BC, teacher_BC = logits_BC.float() / temperature, teacher_BC.float() / temperature
    if is_multilabel:
        targets_BC = torch.sigmoid(teacher_BC)
        crossed, least = (
            F.binary_cross_entropy_with_logits(logits, targets_BC, reduction="none")
            for logits in (student_BC, teacher_BC)
        )
        return temperature**2 * (crossed - least).mean(dim=1)
    logs_BC, targets_BC = F.log_softmax(student_BC, dim=1), F.log_softmax(teacher_BC, dim=1)
    return temperature**2 * F.kl_div(logs_BC, targets_BC, reduction="none", log_target=True).sum(dim=1)

"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from txclf.training import sharded_tensors


class EMA:
    """Exponential moving average of a model's weights (Polyak and Juditsky, 1992) over about 1 / (1 - decay) steps.

    Early steps use a decay of (1 + step) / (10 + step), because the random initial weights would weigh for long.
    """

    def __init__(self, model: nn.Module, decay: float, weights: Mapping[str, torch.Tensor] | None = None) -> None:
        """Start from `weights`, by parameter name, or from those of the model."""
        self.decay = decay
        self.parameters = dict(model.named_parameters())
        self.weights = [sharded_tensors.local(parameter.detach()).clone() for parameter in self.parameters.values()]
        if weights:
            for weight, (name, parameter) in zip(self.weights, self.parameters.items(), strict=True):
                weight.copy_(sharded_tensors.local(sharded_tensors.like(weights[name], parameter)))

    def add(self, step: int) -> None:
        """Add the weights after a step, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.weights, self._current(), 1 - decay)

    def swap(self) -> None:
        """Exchange the model's weights and the averaged ones."""
        for averaged, weight in zip(self.weights, self._current(), strict=True):
            held = weight.clone()
            weight.copy_(averaged)
            averaged.copy_(held)

    def state(self) -> dict[str, torch.Tensor]:
        """Return the averaged weights by parameter name, sharded as the model is."""
        return {
            name: sharded_tensors.as_sharded(averaged, parameter)
            for averaged, (name, parameter) in zip(self.weights, self.parameters.items(), strict=True)
        }

    def _current(self) -> list[torch.Tensor]:
        return [sharded_tensors.local(parameter.detach()) for parameter in self.parameters.values()]

"""Exponential moving average of the weights."""

from __future__ import annotations

import torch
from torch import nn

from txclf.training import sharded_tensors


class EMA:
    """An exponential moving average of a model's weights (Polyak and Juditsky, 1992), of about 1 / (1 - decay) steps.

    The first steps count more, by a decay of (1 + step) / (10 + step), or the random start would weigh for long.
    """

    def __init__(self, model: nn.Module, decay: float, state: dict[str, torch.Tensor] | None) -> None:
        self.decay = decay
        self.parameters = dict(model.named_parameters())
        self.weights = [sharded_tensors.local(parameter.detach()).clone() for parameter in self.parameters.values()]
        if state:
            for weight, (name, parameter) in zip(self.weights, self.parameters.items(), strict=True):
                weight.copy_(sharded_tensors.local(sharded_tensors.like(state[name], parameter)))

    def add(self, step: int) -> None:
        """Takes the weights after a step, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.weights, self._now(), 1 - decay)

    def swap(self) -> None:
        """Puts the average into the model and what was there aside, or back."""
        for mine, weight in zip(self.weights, self._now(), strict=True):
            held = weight.clone()
            weight.copy_(mine)
            mine.copy_(held)

    def state(self) -> dict[str, torch.Tensor]:
        return {
            name: sharded_tensors.as_sharded(mine, parameter)
            for mine, (name, parameter) in zip(self.weights, self.parameters.items(), strict=True)
        }

    def _now(self) -> list[torch.Tensor]:
        return [sharded_tensors.local(parameter.detach()) for parameter in self.parameters.values()]

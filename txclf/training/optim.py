"""Parameter groups and the learning-rate schedule."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from txclf.config.train import Train


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight matrices with decay; norms, biases, embeddings and other vectors without."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim >= 2 and id(parameter) not in embeddings and "positions." not in name
        (decayed if matrix else others).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def learning_rate_factor(train: Train, step: int, total_steps: int) -> float:
    """Learning rate of a step, from 0, as a share of the peak.

    `one_cycle` (arXiv:1708.07120) goes up and down by half cosines; the others go up by a line from `start_factor`.
    The last step stands one step before `end_factor` is reached.
    """
    warmup = round(train.warmup_fraction * total_steps)
    if step < warmup:
        done = step / warmup
        if train.schedule == "one_cycle":
            done = (1 - math.cos(math.pi * done)) / 2
        return train.start_factor + (1.0 - train.start_factor) * done
    if train.schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    left = 1.0 - done if train.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return train.end_factor + (1.0 - train.end_factor) * left

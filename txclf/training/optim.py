"""The optimizer's parameter groups, its learning-rate schedule, and its restoration from a checkpoint.

The schedule is the only owner of the learning rate: LambdaLR sets it, the log reads it from the optimizer, and a
checkpoint does not bring one along.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from txclf.config.train import Train
from txclf.training import sharded_tensors


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the parameters: weight matrices decay; norms, biases, embeddings and other vectors do not."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim >= 2 and id(parameter) not in embeddings and "positions." not in name
        (decayed if matrix else others).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def learning_rate_factor(train: Train, step: int, total_steps: int) -> float:
    """Return the learning rate of a step, counted from 0, as a share of the peak.

    `one_cycle` (arXiv:1708.07120) rises and falls by half cosines; the other schedules rise linearly from
    `start_factor`. `end_factor` would be reached one step after the last.
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


def schedule_learning_rate(
    optimizer: torch.optim.Optimizer, train: Train, start_step: int, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return the scheduler of a run that starts at `start_step`; it sets the rate of that step at once."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(train, start_step + step, total_steps)
    )


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load the moments of a saved optimizer, sharded as the parameters are.

    The groups keep their settings: the learning rate is that of the schedule, weight decay and betas are those of the
    run file, also where another trial of a population saved the checkpoint.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, values in saved["state"].items():
        for name, value in values.items():
            values[name] = sharded_tensors.like(value, parameters[number])
    optimizer.load_state_dict({"state": saved["state"], "param_groups": optimizer.state_dict()["param_groups"]})

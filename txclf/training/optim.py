"""The optimizer's parameter groups, and its restoration from a checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

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

"""The optimizer's parameter groups, and its restoration from a checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from txclf.config.train import Train
from txclf.model.classifier import TransformerClassifier
from txclf.model.pretrained import PretrainedClassifier
from txclf.training import sharded_tensors


def parameter_groups(model: nn.Module, train: Train) -> list[dict[str, Any]]:
    """Split the trained parameters into groups of the same learning rate and weight decay.

    Weight matrices decay; norms, biases, embeddings and other vectors do not. With `train.layer_decay` or
    `train.head_learning_rate`, each layer and the head have groups of their own (arXiv:1801.06146).
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    rates = learning_rates(model, train)
    rate = train.learning_rate
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {(rate, True): [], (rate, False): []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim >= 2 and id(parameter) not in embeddings and "positions." not in name
            groups.setdefault((rates.get(name, rate), matrix), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": train.weight_decay if matrix else 0.0}
        for (rate, matrix), parameters in groups.items()
        if parameters
    ]


def learning_rates(model: nn.Module, train: Train) -> dict[str, float]:
    """Return the peak learning rate of each parameter; empty if all have `train.learning_rate`.

    The top layer has `train.learning_rate`, a layer below it `train.layer_decay` times that of the layer above.
    """
    head = train.head_learning_rate or train.learning_rate
    if train.layer_decay == 1.0 and head == train.learning_rate:
        return {}
    assert isinstance(model, TransformerClassifier | PretrainedClassifier)
    depths = model.layer_depths()
    top = max((depth for depth in depths.values() if depth is not None), default=0)
    return {
        name: head if depth is None else train.learning_rate * train.layer_decay ** (top - depth)
        for name, depth in depths.items()
    }


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

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
    depths, top = _depths(model, train)
    # By depth and not by rate: a population changes rates, and the moments of an optimizer are saved by position.
    groups: dict[tuple[int | None, bool], list[nn.Parameter]] = {(top, True): [], (top, False): []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim >= 2 and id(parameter) not in embeddings and "positions." not in name
            groups.setdefault((depths.get(name, top), matrix), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": _rate(train, depth, top),
            "weight_decay": train.weight_decay if matrix else 0.0,
        }
        for (depth, matrix), parameters in groups.items()
        if parameters
    ]


def _depths(model: nn.Module, train: Train) -> tuple[dict[str, int | None], int]:
    """Return the depths of parameters whose rates may differ, None for the head, and the depth of the others."""
    if train.layer_decay == 1.0 and train.head_learning_rate is None:
        return {}, 0
    assert isinstance(model, TransformerClassifier | PretrainedClassifier)
    depths = model.layer_depths()
    if train.layer_decay == 1.0:
        return {name: None for name, depth in depths.items() if depth is None}, 0
    top = max((depth for depth in depths.values() if depth is not None), default=0)
    if train.head_learning_rate is None:
        depths = {name: top if depth is None else depth for name, depth in depths.items()}
    return depths, top


def _rate(train: Train, depth: int | None, top: int) -> float:
    """Return the peak learning rate at a depth.

    The top layer has `train.learning_rate`, a layer below it `train.layer_decay` times that of the layer above.
    """
    if depth is None:
        return train.head_learning_rate or train.learning_rate
    return train.learning_rate * train.layer_decay ** (top - depth)


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

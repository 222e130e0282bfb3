"""`train.class_weights`: the weight of a class in the loss."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from txclf.config.run_config import RunConfig
from txclf.core.errors import ConfigError
from txclf.core.text import listed, shown
from txclf.data.shards import Split

MAX_POSITIVE_WEIGHT = 100.0
"""Maximum weight of the rows with a label under `class_weights: balanced`; its inverse is the minimum."""


def label_weights(run: RunConfig, train: Split) -> Tensor | None:
    """Return `train.class_weights` for the training rows. Raises `ConfigError` for an unknown label."""
    if run.task_spec.is_multilabel:
        return positive_weights(run.train.class_weights, train.label_counts, train.labelled_rows)
    return class_weights(run.train.class_weights, train.label_counts)


def class_weights(setting: str | Mapping[str, float], label_counts: Mapping[str, int]) -> Tensor | None:
    """Return weights (C,) in the order of `label_counts`, or None for `none`; their mean over the training rows is 1.

    Raises `ConfigError` for an unknown label, or if every row would have weight 0.
    """
    if setting == "none":
        return None
    counts = torch.tensor([float(count) for count in label_counts.values()])
    if isinstance(setting, str):
        return counts.sum() / (len(counts) * counts.clamp(min=1.0))
    weights = given_weights(setting, label_counts)
    total = (weights * counts).sum()
    if not total:
        raise ConfigError("`train.class_weights`: every label that occurs has weight 0. Set a weight above 0.")
    return weights * counts.sum() / total


def given_weights(weights: Mapping[str, float], labels: Collection[str]) -> Tensor:
    """Return the weight of each label (C,), by default 1. Raises `ConfigError` for an unknown label."""
    unknown = sorted(set(weights) - set(labels))
    if unknown:
        label = f"`{shown(unknown[0])}` is not a label; the labels are: {listed(labels)}"
        raise ConfigError(f"`train.class_weights`: {label}. Name one of them.")
    return torch.tensor([float(weights.get(label, 1.0)) for label in labels])


def positive_weights(setting: str | Mapping[str, float], label_counts: Mapping[str, int], rows: int) -> Tensor | None:
    """Return weights (C,) of the rows that have a label, in the order of `label_counts`, or None for `none`.

    `balanced` is rows without / rows with the label, from 1 / `MAX_POSITIVE_WEIGHT` to `MAX_POSITIVE_WEIGHT`. Raises
    `ConfigError` for an unknown label.
    """
    if setting == "none":
        return None
    counts = torch.tensor([float(count) for count in label_counts.values()])
    if isinstance(setting, str):
        return ((rows - counts) / counts.clamp(min=1.0)).clamp(1 / MAX_POSITIVE_WEIGHT, MAX_POSITIVE_WEIGHT)
    return given_weights(setting, label_counts)

"""`train.class_weights`: what the loss of a row or of a label weighs."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from txclf.config.run_config import RunConfig
from txclf.core.errors import ConfigError
from txclf.data.shards import Split

HEAVIEST = 100.0
"""What `class_weights: balanced` weighs the rows with a label at most, and its inverse at least."""


def label_weights(run: RunConfig, train: Split) -> Tensor | None:
    """`train.class_weights` for the training rows. Raises `ConfigError` for a label that is not there."""
    if run.task == "multilabel":
        return positive_weights(run.train.class_weights, train.label_counts, train.rows)
    return class_weights(run.train.class_weights, train.label_counts)


def class_weights(setting: str | Mapping[str, float], label_counts: Mapping[str, int]) -> Tensor | None:
    """Weights (C,) in the order of `label_counts`, or None for `none`; over the training rows their mean is 1.

    Raises `ConfigError` for a label that is not there or when every row would weigh nothing.
    """
    if setting == "none":
        return None
    counts = torch.tensor([float(count) for count in label_counts.values()])
    if isinstance(setting, str):
        return counts.sum() / (len(counts) * counts.clamp(min=1.0))
    weights = given_weights(setting, label_counts)
    total = (weights * counts).sum()
    if not total:
        raise ConfigError("`train.class_weights`: every label that occurs has weight 0")
    return weights * counts.sum() / total


def given_weights(weights: Mapping[str, float], labels: Collection[str]) -> Tensor:
    """The weight of each label (C,), 1 where none is given. Raises `ConfigError` for a label that is not there."""
    unknown = sorted(set(weights) - set(labels))
    if unknown:
        known = ", ".join(list(labels)[:20])
        raise ConfigError(f"`train.class_weights`: `{unknown[0]}` is not a label; the labels are: {known}")
    return torch.tensor([float(weights.get(label, 1.0)) for label in labels])


def positive_weights(setting: str | Mapping[str, float], label_counts: Mapping[str, int], rows: int) -> Tensor | None:
    """Weights (C,) of the rows that have a label, in the order of `label_counts`, or None for `none`.

    `balanced` is rows without / rows with the label, between 1 / `HEAVIEST` and `HEAVIEST`. Raises `ConfigError` for a
    label that is not there.
    """
    if setting == "none":
        return None
    counts = torch.tensor([float(count) for count in label_counts.values()])
    if isinstance(setting, str):
        return ((rows - counts) / counts.clamp(min=1.0)).clamp(1 / HEAVIEST, HEAVIEST)
    return given_weights(setting, label_counts)

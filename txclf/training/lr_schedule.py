"""The learning-rate schedule.

It is the only owner of the learning rate: LambdaLR sets it, the log reads it from the optimizer, and a checkpoint does
not bring one along.
"""

from __future__ import annotations

import math

import torch

from txclf.config.train import Train


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

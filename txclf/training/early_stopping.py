"""The early-stopping rule."""

from __future__ import annotations

from txclf.artifacts import checkpoints
from txclf.config.train import Train


def out_of_patience(history: list[dict[str, float]], train: Train) -> bool:
    """Return True if the last `train.early_stopping_patience` validations brought nothing better."""
    if not history or not train.early_stopping_patience or train.train_on_valid:
        return False
    waited = len(history) - 1 - checkpoints.best(history, train.monitor)
    return bool(waited >= train.early_stopping_patience)

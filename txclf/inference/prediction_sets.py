"""Prediction sets of a bundle: the labels that hold the true one with a chosen coverage."""

from __future__ import annotations

import numpy as np

from txclf.core.errors import ConfigError
from txclf.inference.metadata import BundleMetadata
from txclf.metrics import conformal
from txclf.metrics.conformal import Floats


def minimum(metadata: BundleMetadata, coverage: float, where: str = "`coverage`") -> float:
    """Return the minimum probability of a label in a set.

    Raises `ConfigError`, which names the argument as `where`, if the model has no sets or the coverage is out of range.
    """
    spec, table = metadata.task_spec, metadata.conformal
    if not spec.has_labels:
        raise ConfigError(f"{where}: a `{spec.name}` model has no labels. Remove {where}.")
    if spec.is_multilabel:
        raise ConfigError(f"{where}: a `{spec.name}` model chooses labels by their thresholds. Remove {where}.")
    if not 0 < coverage <= 1:
        raise ConfigError(f"{where}: {coverage} is out of range. Pass a number above 0 and at most 1, such as 0.95.")
    if table is None:
        raise ConfigError(
            f"{where}: the model has no quantiles for prediction sets: an earlier version saved it, or it has learned "
            "its validation rows. Train it again without `train.train_on_valid`."
        )
    return conformal.minimum(table.quantiles, table.rows, coverage)


def label_sets(metadata: BundleMetadata, probabilities: Floats, minimum: float) -> list[list[str]]:
    """Return the labels in the set of each row of probabilities (rows, classes), the most probable first."""
    if not len(probabilities):
        return []
    order = np.argsort(-probabilities, axis=1, kind="stable")
    found = conformal.members(probabilities, minimum)
    return [[metadata.labels[i] for i in numbers if row[i]] for numbers, row in zip(order, found, strict=True)]

"""What a bundle is made of: the weights of the best checkpoint, and what the validation rows say of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from txclf import calibration, checkpoints, storage
from txclf.bundle import Calibration, Classifier
from txclf.checkpoints import Checkpoint
from txclf.config import RunConfig
from txclf.data import shards
from txclf.data.batches import TokenRows


class Scored(NamedTuple):
    """The validation rows, N, as weights score them."""

    logits: npt.NDArray[np.float32]
    """(N, classes)."""
    labels: npt.NDArray[np.int32]
    """(N,)."""


class Chosen(NamedTuple):
    """What goes into a bundle."""

    step: int
    metrics: dict[str, float]
    """On the validation rows; empty where they were learned from."""
    weights: Mapping[str, Tensor]
    calibration: Calibration | None


def chosen(run: RunConfig, prepared: str, saved: list[Checkpoint]) -> Chosen:
    """The best of a run's checkpoints by `train.monitor`, calibrated on the validation rows.

    With `train.include_valid` it is the last: scores on rows that were learned from choose and calibrate nothing.
    """
    if run.train.include_valid:
        return Chosen(saved[-1].step, {}, _weights(saved[-1]), None)
    best = checkpoints.ranked(saved, run.train.monitor)[0]
    weights = _weights(best)
    return Chosen(
        best.step,
        {name: float(value) for name, value in best.metrics.items()},
        weights,
        _calibrated(_scored(run, prepared, weights)) if run.train.calibrate else None,
    )


def _weights(checkpoint: Checkpoint) -> Mapping[str, Tensor]:
    """Those that were validated."""
    state = checkpoints.load(checkpoint)
    weights: Mapping[str, Tensor] = state.get("average") or state["model"]
    return weights


def _scored(run: RunConfig, prepared: str, weights: Mapping[str, Tensor]) -> Scored:
    """Scores the validation rows in this process, a part of a shard at a time: memory holds their logits."""
    manifest = shards.load_manifest(prepared)
    tokenizer = storage.read_bytes(storage.join(prepared, shards.TOKENIZER)).decode()
    classifier = Classifier.of(run, weights, manifest.labels, tokenizer)
    logits, labels = [], []
    for shard in manifest.splits["valid"].shards:
        for table in shards.read_groups(prepared, shard, ["input_ids", "label"]):
            rows = TokenRows([table])
            logits.append(classifier.logits(rows))
            labels.append(rows.labels)
    return Scored(np.concatenate(logits), np.concatenate(labels))


def _calibrated(scored: Scored) -> Calibration:
    temperature = calibration.temperature(*scored)
    return Calibration(
        temperature=temperature,
        error_before=calibration.error(*scored),
        error_after=calibration.error(*scored, temperature),
        rows=len(scored.labels),
    )

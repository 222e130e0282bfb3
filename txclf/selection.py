"""What a bundle is made of: the weights of the best checkpoint or of several, and what the validation rows say of them.

Of a run on Ray too this is done in the process of the command: checkpoints and shards lie on storage.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_f1_score

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
    averaged: list[int]
    """Steps of the checkpoints whose mean the weights are; empty when they are those of `step` alone."""


def chosen(run: RunConfig, prepared: str, saved: list[Checkpoint]) -> Chosen:
    """The best of a run's checkpoints by `train.monitor`, calibrated on the validation rows.

    With `train.average_best` it is the mean of the best few (Wortsman et al., arXiv:2203.05482) where that scores at
    least as well. With `train.include_valid` it is the last: scores on rows that were learned from choose and calibrate
    nothing.
    """
    train = run.train
    if train.include_valid:
        return Chosen(saved[-1].step, {}, _weights(saved[-1]), None, [])
    ranked = checkpoints.ranked(saved, train.monitor)
    best, several = ranked[0], ranked[: train.average_best]
    step, metrics, weights = best.step, {name: float(value) for name, value in best.metrics.items()}, _weights(best)
    averages, calibrates = len(several) > 1, train.calibrate and run.task == "classify"
    scored = _scored(run, prepared, weights) if averages or calibrates else None
    averaged: list[int] = []
    if scored and averages:
        mean = _mean(several)
        other = _scored(run, prepared, mean)
        # Both as scored here: what the log says of the best may have been computed in another precision.
        found = _metrics(other)
        if not checkpoints.better(train.monitor, _metrics(scored)[train.monitor], found[train.monitor]):
            metrics, weights, scored = found, mean, other
            averaged = sorted(one.step for one in several)
    calibrated = _calibrated(scored) if scored and calibrates else None
    return Chosen(step, metrics, weights, calibrated, averaged)


def _mean(several: list[Checkpoint]) -> Mapping[str, Tensor]:
    """Of their weights, one checkpoint in memory at a time."""
    sums: dict[str, Tensor] = {}
    kinds: dict[str, torch.dtype] = {}
    for one in several:
        for name, weight in _weights(one).items():
            kinds[name] = weight.dtype
            sums[name] = sums[name] + weight.double() if name in sums else weight.double()
    return {name: (total / len(several)).to(kinds[name]) for name, total in sums.items()}


def _metrics(scored: Scored) -> dict[str, float]:
    """Those of a validation, by the same names."""
    logits, labels = torch.from_numpy(scored.logits), torch.from_numpy(scored.labels.astype(np.int64))
    return {
        "valid_loss": float(F.cross_entropy(logits.double(), labels)),
        "valid_accuracy": float((logits.argmax(dim=1) == labels).double().mean()),
        "valid_f1_macro": float(multiclass_f1_score(logits, labels, logits.shape[1], average="macro")),
    }


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

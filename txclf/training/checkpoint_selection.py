"""The selection of what a bundle is made of: the best checkpoint or the mean of several, and its calibration.

At most `MAX_ROWS` validation rows are scored again, so time and memory do not grow with the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from txclf.artifacts import checkpoints
from txclf.artifacts.checkpoints import Checkpoint
from txclf.config.run_config import RunConfig
from txclf.data import shards
from txclf.data.batches import PairRows
from txclf.inference.classifier import Classifier, softmax
from txclf.inference.metadata import Calibration, Conformal
from txclf.inference.seq2seq import Seq2Seq
from txclf.metrics import binned, calibration, conformal, multiclass, thresholds
from txclf.ngrams.blend import Blend
from txclf.training import ngram_share

MAX_ROWS = 50_000
"""Max validation rows that are scored. The first rows are a uniform sample, because prepared rows are shuffled."""


class Scored(NamedTuple):
    """Scores of N validation rows, at most `MAX_ROWS`."""

    metrics: dict[str, float]
    """Metrics by the names of a validation."""
    logits: npt.NDArray[np.float32]
    """(N, classes); empty for `seq2seq`."""
    labels: npt.NDArray[np.int32] | npt.NDArray[np.bool_]
    """(N,) class ids; for `multilabel` (N, classes), True for each label of a row."""


class Chosen(NamedTuple):
    """Content of a bundle."""

    step: int
    metrics: dict[str, float]
    """Metrics on the validation rows; empty if the run trained on them. Those of a mean are from `MAX_ROWS` rows."""
    weights: Mapping[str, Tensor]
    calibration: Calibration | None
    averaged: list[int]
    """Steps of the checkpoints whose mean the weights are; empty if they are those of `step` alone."""
    thresholds: dict[str, float] | None = None
    """Threshold of each label's calibrated probability (`multilabel`); None if the run trained on the rows."""
    blend: Blend | None = None
    """Linear model on n-grams that answers together with the network."""
    conformal: Conformal | None = None
    """Quantiles for prediction sets (`classify`); None if the run trained on the rows."""


def chosen(
    run: RunConfig, prepared: str, saved: list[Checkpoint], transformers_files: Mapping[str, bytes] | None = None
) -> Chosen:
    """Choose the best of a run's checkpoints by `train.monitor` and calibrate it on the validation rows.

    With `train.average_checkpoints` it is the mean of the best few (Wortsman et al., arXiv:2203.05482) if that scores
    at least as well. With `train.train_on_valid` it is the last, because scores on training rows choose and calibrate
    nothing. With `model.ngrams` a linear model gets the share that the validation rows give, and a `multilabel` model
    its thresholds. The prediction sets of a `classify` model follow from the final probabilities. `transformers_files`
    describe the network of a pretrained run.
    """
    train, spec = run.train, run.task_spec
    if train.train_on_valid:
        return Chosen(saved[-1].step, {}, _weights(saved[-1]), None, [])
    ranked = checkpoints.ranked(saved, train.monitor)
    best, candidates = ranked[0], ranked[: train.average_checkpoints]
    metrics, weights = {name: float(value) for name, value in best.metrics.items()}, _weights(best)
    averages, calibrates = len(candidates) > 1, train.calibrate and spec.has_labels
    scored = None
    if averages or spec.has_labels:
        scored = _score(run, prepared, weights, transformers_files)
    averaged: list[int] = []
    if scored and averages:
        mean = _mean(candidates)
        scored_mean = _score(run, prepared, mean, transformers_files)
        # Both as scored here, because the log may have scored the best in another precision.
        if not checkpoints.better(train.monitor, scored.metrics[train.monitor], scored_mean.metrics[train.monitor]):
            metrics, weights, scored = scored_mean.metrics, mean, scored_mean
            averaged = sorted(checkpoint.step for checkpoint in candidates)
    blend = None
    if scored and run.uses_ngrams and (found := ngram_share.fitted(run, prepared, scored.logits, scored.labels)):
        blend, metrics = found.blend, _metrics(found.logits, scored.labels)
        scored = Scored(metrics, found.logits, scored.labels)
    calibrated = _calibrate(scored) if scored and calibrates else None
    limits, sets, temperature = None, None, calibrated.temperature if calibrated else 1.0
    if scored and spec.is_multilabel:
        scaled = scored.logits / np.float32(temperature)
        names = shards.load_manifest(prepared).labels
        limits = dict(zip(names, thresholds.choose(scaled, scored.labels.astype(bool)), strict=True))
    elif scored and spec.has_labels:
        quantiles = conformal.table(softmax(scored.logits, temperature), scored.labels.astype(np.int64))
        sets = Conformal(rows=len(scored.labels), quantiles=quantiles)
    return Chosen(best.step, metrics, weights, calibrated, averaged, limits, blend, sets)


def _mean(saved: list[Checkpoint]) -> Mapping[str, Tensor]:
    """Return the mean of the checkpoints' weights, with one checkpoint in memory at a time."""
    sums: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for checkpoint in saved:
        for name, weight in _weights(checkpoint).items():
            dtypes[name] = weight.dtype
            sums[name] = sums[name] + weight.double() if name in sums else weight.double()
    return {name: (total / len(saved)).to(dtypes[name]) for name, total in sums.items()}


def _metrics(
    row_logits: npt.NDArray[np.float32], row_labels: npt.NDArray[np.int32] | npt.NDArray[np.bool_]
) -> dict[str, float]:
    if row_labels.ndim == 2:
        logits, targets = torch.from_numpy(row_logits), torch.from_numpy(row_labels.astype(np.float32))
        tempered = calibration.tempered_losses(logits, targets)
        return {
            "valid_loss": float(F.binary_cross_entropy_with_logits(logits.double(), targets.double())),
            "valid_calibrated_loss": float(tempered.min()) / len(logits),
            **binned.ranking(binned.counted(logits, targets)),
            "valid_subset_accuracy": float(((logits >= 0) == (targets > 0)).all(dim=1).double().mean()),
        }
    logits, labels = torch.from_numpy(row_logits), torch.from_numpy(row_labels.astype(np.int64))
    predicted = logits.argmax(dim=1)
    return {
        "valid_loss": float(F.cross_entropy(logits.double(), labels)),
        "valid_calibrated_loss": float(calibration.tempered_losses(logits, labels).min()) / len(logits),
        "valid_accuracy": float((predicted == labels).double().mean()),
        "valid_f1_macro": multiclass.short_scores(predicted.numpy(), labels.numpy(), logits.shape[1])["f1_macro"],
    }


def _weights(checkpoint: Checkpoint) -> Mapping[str, Tensor]:
    """Return the weights that were validated."""
    state = checkpoints.load(checkpoint)
    return {**state["model"], **(state.get("average") or {})}  # an average lacks the buffers


def _score(
    run: RunConfig, prepared: str, weights: Mapping[str, Tensor], transformers_files: Mapping[str, bytes] | None
) -> Scored:
    """Score the sampled validation rows in this process; memory holds their logits, or the tokens of `seq2seq`."""
    manifest, tokenizers = shards.load_manifest(prepared), shards.tokenizers(prepared)
    sample = shards.first_rows(prepared, manifest, "valid", run.task_spec.shard_columns, MAX_ROWS)
    if run.task_spec.is_seq2seq:
        rows = PairRows.from_tables(list(sample))
        scores = Seq2Seq.from_config(run, weights, tokenizers).teacher_forced(rows)
        names = {"teacher_forced_match": "exact_match"}  # as the validations call it
        metrics = {f"valid_{names.get(name, name)}": value for name, value in scores.items()}
        return Scored(metrics, np.empty((0, 0), np.float32), np.empty(0, np.int32))
    classifier = Classifier.from_config(
        run,
        weights,
        manifest.labels,
        tokenizers[0],
        special=manifest.special_tokens,
        transformers_files=transformers_files,
    )
    logits: list[Any] = []
    labels: list[Any] = []
    for table in sample:
        token_rows = classifier.rows([table])
        logits.append(classifier.logits(token_rows))
        sets = token_rows.label_sets
        labels.append(token_rows.labels if sets is None else sets.matrix(len(manifest.labels)))
    all_logits, all_labels = np.concatenate(logits), np.concatenate(labels)
    return Scored(_metrics(all_logits, all_labels), all_logits, all_labels)


def _calibrate(scored: Scored) -> Calibration:
    logits, labels = scored.logits, scored.labels
    temperature = calibration.temperature(logits, labels)
    return Calibration(
        temperature=temperature,
        error_before=calibration.error(logits, labels),
        error_after=calibration.error(logits, labels, temperature),
        rows=len(scored.labels),
    )

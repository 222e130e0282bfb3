"""Rows that a frozen encoder has read: the vector of each, on which the head is trained (`model.freeze: encoder`).

The rows pass through the encoder once, for all epochs and all runs on the same prepared data. Without the vectors a
run takes the same steps, but runs the encoder in each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch

from txclf.data import shards
from txclf.data.batches import ENCODED, TokenRows
from txclf.data.sampler import scoring_batches
from txclf.data.sidecars import RowGroup, Sidecar
from txclf.model import mean_pooling, pooled_vectors
from txclf.model.pooled_vectors import Pooling
from txclf.model.pretrained import PretrainedClassifier
from txclf.training.job import WorkerConfig
from txclf.training.precision import choose_precision

TRIED_ROWS = 8
"""Rows by which the pooling of an architecture is found."""
BATCH_ROWS = 64


def sidecar(config: WorkerConfig) -> Sidecar | None:
    """Return the sidecar of the vectors of a run, or None if its head cannot be trained on them.

    That is so without a frozen encoder, if rows differ from epoch to epoch or have windows, and for an architecture
    whose head reads more than one vector.
    """
    run = config.run
    is_frozen = config.encoder is not None and run.model.freeze == "encoder"
    varies = run.train.token_dropout or run.train.adversarial
    if not is_frozen or varies or run.data.truncation == "windows" or run.compute.strategy == "fsdp":
        return None
    model = _network(config)
    pooling = _pooling(config, model)
    if pooling is None:
        return None
    assert config.first_encoder is not None
    # The hash of the model's files is the name of their folder. Mixed precision changes the vectors a little.
    parts = [config.first_encoder.rstrip("/").rpartition("/")[2], str(run.train.precision == "fp32")]
    if mean_pooling.is_used(model.network.config):  # others have the names that they had before
        parts.append("mean")
    elif pooling == "last":  # that of short rows was wrong in an earlier version
        parts.append(pooling)
    digest = hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]
    return Sidecar(
        name=f"encoded-{digest}",
        column=ENCODED,
        width=model.network.config.hidden_size,
        splits=("train", "valid"),
    )


def _network(config: WorkerConfig) -> PretrainedClassifier:
    """Return the network that the run starts with, on the CPU: a driver of Ray needs no GPU to find the pooling."""
    from txclf.training import pretrained_network

    assert config.first_encoder is not None
    return pretrained_network.network(config.first_encoder, config.run, config.manifest()).eval()


@torch.inference_mode()
def _pooling(config: WorkerConfig, model: PretrainedClassifier) -> Pooling | None:
    """Return the pooling of the head, found with the longest of the first training rows."""
    first = RowGroup(config.manifest().splits["train"].shards[0], 0)
    rows = _rows(config, first)
    longest = np.argsort(-rows.lengths, kind="stable")[:TRIED_ROWS]  # the first token of a short row is its last too
    ids, mask, segments, _, _ = rows.pad(np.sort(longest))
    return pooled_vectors.pooling_of(model, *_on_device(model, ids, mask, segments))


def _rows(config: WorkerConfig, group: RowGroup) -> TokenRows:
    tables = shards.read_groups(config.prepared, group.shard, ["input_ids"], [group.number])
    return TokenRows(list(tables), layout=config.layout())


def _on_device(
    model: PretrainedClassifier, ids: torch.Tensor, mask: torch.Tensor | None, segments: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    device = next(model.parameters()).device
    return (
        ids.to(device),
        None if mask is None else mask.to(device),
        None if segments is None else segments.to(device),
    )


@torch.inference_mode()
def store(config: WorkerConfig, target: Sidecar, groups: Sequence[RowGroup], show: Callable[[int], None]) -> None:
    """Compute and store the vectors of some row groups. `show` receives the rows done since the last call."""
    model = _network(config)
    pooling = _pooling(config, model)
    assert pooling is not None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    precision, _ = choose_precision(config.run.train.precision, device == "cuda")
    for group in groups:
        rows = _rows(config, group)
        vectors = np.empty((len(rows), target.width), np.float32)
        for part in scoring_batches(rows.lengths, BATCH_ROWS):
            ids, mask, segments, _, _ = rows.pad(part)
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed"):
                found = pooled_vectors.pooled(model, *_on_device(model, ids, mask, segments), pooling)
            vectors[part] = found.float().cpu().numpy()
            show(len(part))
        target.write(config.prepared, group, vectors)

"""Model FLOPs utilization (MFU): the model's floating-point operations over the matrix rate of the device.

Counted are the matrix products that real tokens need, attention included (PaLM, arXiv:2204.02311, appendix B): padding,
recomputation in a backward pass and element-wise work do not count, so they lower the share. The rate is measured in
the precision of the run; it is not the vendor's figure.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from txclf.config.sections import Model
from txclf.config.train import Train
from txclf.data.batches import Batch, PairBatch

MAX_SECONDS = 1.0
"""Seconds after which the measurement of the rate starts no further product."""


def training_flops(model: Model, train: Train, batch: Batch | PairBatch, target_vocab: int) -> float:
    """Return the floating-point operations of a training batch; a backward pass costs twice a forward pass.

    `train.adversarial` adds a forward pass, its backward pass, and one to the token vectors alone.
    """
    passes = 7 if train.adversarial else 3
    return passes * forward_flops(model, batch, target_vocab)


def forward_flops(model: Model, batch: Batch | PairBatch, target_vocab: int = 0) -> float:
    """Return the floating-point operations of a forward pass without the classifier's head, which sees rows."""
    width, inner = model.hidden_size, model.intermediate_size
    token, pair = 8 * width**2 + 4 * width * inner, 4 * width
    source = _lengths(batch["input_ids"], batch["mask"]) + (model.pooling == "cls" and model.pretrained is None)
    total = model.num_layers * (token * float(source.sum()) + pair * float((source**2).sum()))
    target_lengths = batch.get("target_lengths")
    if isinstance(target_lengths, Tensor):
        target = target_lengths.double() - 1  # the last token predicts nothing
        looking = float((source * target).sum())
        before = float((target * (target + 1) / 2).sum())
        crossing = 4 * width**2 * (float(source.sum()) + float(target.sum()))
        block = token * float(target.sum()) + pair * (before + looking) + crossing
        total += (model.num_decoder_layers or model.num_layers) * block + 2 * width * target_vocab * float(target.sum())
    return total


def _lengths(input_ids: Tensor, mask: Tensor | None) -> Tensor:
    """Return the real tokens of each row, float64."""
    if mask is None:
        return torch.full((len(input_ids),), float(input_ids.shape[1]), dtype=torch.float64)
    return mask.sum(dim=1).double()


def matrix_rate(device: torch.device, precision: str) -> float:
    """Return the operations per second of large square matrix products in this process: the best of several."""
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision, torch.float32)
    size = 1024 if device.type == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))  # zeros or ones run faster
    best, began = float("inf"), time.perf_counter()
    for _ in range(6):
        if time.perf_counter() - began > MAX_SECONDS:
            break
        wait(device)
        start = time.perf_counter()
        left @ right
        wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def wait(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""FLOPs by formula, compared with those that torch counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from txclf.config.sections import Model
from txclf.config.train import Train
from txclf.data.batches import Batch, PairBatch
from txclf.model.classifier import TransformerClassifier
from txclf.model.seq2seq import Seq2SeqTransformer
from txclf.training.mfu import forward_flops, matrix_rate, training_flops

SHAPE: dict[str, Any] = {"num_layers": 3, "hidden_size": 32, "num_heads": 4, "intermediate_size": 48, "dropout": 0.0}


def batch_of(lengths: list[int]) -> Batch:
    inside = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    labels = torch.zeros(len(lengths), dtype=torch.int64)
    mask = None if bool(inside.all()) else inside
    ids = torch.ones(inside.shape, dtype=torch.int64)
    return Batch(input_ids=ids, mask=mask, segments=None, windows=None, labels=labels, num_tokens=sum(lengths))


def counted(network: torch.nn.Module, *inputs: Any) -> int:
    # torch does not count its fused attention on a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(*inputs)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_forward_flops_of_a_classifier(pooling: Any) -> None:
    model, batch = Model(**SHAPE, pooling=pooling), batch_of([9, 9])
    head = 2 * 2 * 32 * 5  # 5 classes for 2 rows
    network = TransformerClassifier(model, 10, 5, 16)
    assert forward_flops(model, batch) == counted(network, batch["input_ids"]) - head


def test_forward_flops_of_a_seq2seq_model() -> None:
    model = Model(**SHAPE, num_decoder_layers=2)
    source, targets = batch_of([9, 9]), torch.ones(2, 7, dtype=torch.int64)
    batch = PairBatch(
        input_ids=source["input_ids"],
        mask=None,
        target_ids=targets,
        target_lengths=torch.tensor([7, 7]),
        num_tokens=30,
    )
    network = Seq2SeqTransformer(model, 10, 11, 16, False)
    # torch counts what causal attention leaves out: 15 of 6 x 6 pairs, in two products of 2 x 32, 2 rows and 2 blocks.
    left_out = 15 * 2 * 2 * 32 * 2 * 2
    assert forward_flops(model, batch, 11) == counted(network, batch["input_ids"], None, targets[:, :-1]) - left_out


def test_forward_flops_ignore_padding() -> None:
    model = Model(**SHAPE)
    alone = [forward_flops(model, batch_of([length])) for length in (3, 8, 8)]
    assert forward_flops(model, batch_of([3, 8, 8])) == sum(alone)


def test_training_flops_are_three_passes_or_seven_if_adversarial() -> None:
    model, batch = Model(**SHAPE), batch_of([4, 4])
    forward = forward_flops(model, batch)
    assert training_flops(model, Train(), batch, 0) == 3 * forward
    assert training_flops(model, Train(adversarial=1.0), batch, 0) == 7 * forward


def test_matrix_rate_is_reached_by_products() -> None:
    rate = matrix_rate(torch.device("cpu"), "32-true")
    assert 1e8 < rate < 1e14
    assert np.isfinite(matrix_rate(torch.device("cpu"), "bf16-mixed"))

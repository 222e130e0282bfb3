"""DDP exchanges the non-zero gradient rows with the result of an all-reduce of all rows; FSDP shards early."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor

from tests.helpers import ranks
from txclf.config import run_config
from txclf.model.classifier import TransformerClassifier
from txclf.model.masked_tokens import MaskedTokenModel
from txclf.training.distributed.strategies import FSDPStrategy, SparseEmbeddingDDP, exchange_rows

WORLD = 3


def gradient(rank: int, kind: str) -> Tensor:
    """Return a gradient of 50 rows, at most ten of them non-zero on each rank; the last five are zero on all."""
    generator = torch.Generator().manual_seed(rank)
    whole = torch.randn(50, 4, generator=generator)
    whole[torch.randperm(50, generator=generator)[:40]] = 0
    whole[45:] = 0
    if kind == "nan" and rank == 1:
        whole[7, 2] = float("nan")
    return torch.zeros(50, 4) if kind == "zero" else whole


def work(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
    for kind in ("rows", "nan", "zero"):
        mine = gradient(rank, kind)
        expected = mine / WORLD
        distributed.all_reduce(expected)
        exchange_rows(mine)
        torch.testing.assert_close(mine, expected, rtol=0, atol=0, equal_nan=True)
        assert mine[45:].count_nonzero() == 0
        assert bool(mine.isnan().any()) == (kind == "nan")
    ranks.leave()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_exchange_rows_gives_the_mean_gradient() -> None:
    ranks.spawn(work, (free_port(),), WORLD)


class Module(pl.LightningModule):
    """A model that records which of its parameters are sharded when it is moved to the device."""

    def __init__(self, is_masked: bool) -> None:
        super().__init__()
        run = run_config.parse({"model": {"num_layers": 2, "hidden_size": 16, "num_heads": 2}})
        classifier = TransformerClassifier(run.model, 50, 3, 8)
        self.model = MaskedTokenModel(classifier) if is_masked else classifier
        self.sharded: list[bool] = []

    def to(self, *args: Any, **kwargs: Any) -> Module:
        self.sharded = [isinstance(parameter, DTensor) for parameter in self.parameters()]
        return super().to(*args, **kwargs)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.model(ids)
        return logits


class CPUStrategy(FSDPStrategy):
    root_device = torch.device("cpu")
    world_size = 2


def shard(rank: int, port: int, is_masked: bool) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    strategy, module = CPUStrategy("fp32"), Module(is_masked)
    strategy.connect(module)
    strategy._lightning_module = module
    strategy.model_to_device()
    strategy.configure_ddp()
    assert module.sharded
    assert all(module.sharded)
    assert strategy.model is module
    parts = sum(parameter.to_local().numel() for parameter in module.parameters() if isinstance(parameter, DTensor))
    assert parts < 0.6 * sum(parameter.numel() for parameter in module.parameters())
    ranks.leave()


@pytest.mark.parametrize("is_masked", [False, True])
def test_fsdp_shards_the_model_before_it_is_moved_to_the_device(is_masked: bool) -> None:
    ranks.spawn(shard, (free_port(), is_masked), 2)


class CPUDDP(SparseEmbeddingDDP):
    root_device = torch.device("cpu")
    world_size = 2


def reduce_gradients(rank: int, port: int, dtype: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    strategy, module = CPUDDP(dtype), Module(is_masked=False)
    strategy.connect(module)
    strategy._lightning_module = module
    strategy.configure_ddp()
    assert strategy.model is not None
    strategy.model(torch.arange(8)[None] + rank).logsumexp(1).sum().backward()
    for name, weight in module.named_parameters():
        assert weight.grad is not None
        if weight is not strategy.embedding and weight.grad.any():  # a bias of the keys has no gradient
            is_rounded = torch.equal(weight.grad, weight.grad.bfloat16().float())
            assert is_rounded == (dtype == "bf16"), name
    ranks.leave()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_ddp_sends_gradients_in_their_dtype(dtype: str) -> None:
    ranks.spawn(reduce_gradients, (free_port(), dtype), 2)

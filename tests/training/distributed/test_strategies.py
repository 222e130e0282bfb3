"""DDP exchanges the non-zero gradient rows with the result of an all-reduce of all rows; FSDP shards early."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import spawn

from tests.helpers import ranks
from txclf.config import run_config
from txclf.model.classifier import TransformerClassifier
from txclf.model.masked_tokens import MaskedTokenModel
from txclf.training.distributed.strategies import FSDPStrategy, exchange_rows

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
    spawn(work, (free_port(),), WORLD)  # type: ignore[no-untyped-call]


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
    spawn(shard, (free_port(), is_masked), 2)  # type: ignore[no-untyped-call]

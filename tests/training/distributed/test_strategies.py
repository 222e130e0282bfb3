"""The exchange of non-zero gradient rows gives the result of an all-reduce of all rows."""

from __future__ import annotations

import socket

import pytest
import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn

from txclf.training.distributed.strategies import exchange_rows

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


def work(rank: int, port: int, kind: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
    mine = gradient(rank, kind)
    expected = mine / WORLD
    distributed.all_reduce(expected)
    exchange_rows(mine)
    torch.testing.assert_close(mine, expected, rtol=0, atol=0, equal_nan=True)
    assert mine[45:].count_nonzero() == 0
    assert bool(mine.isnan().any()) == (kind == "nan")
    distributed.destroy_process_group()


@pytest.mark.parametrize("kind", ["rows", "nan", "zero"])
def test_exchange_rows_gives_the_mean_gradient(kind: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(work, (port, kind), WORLD)  # type: ignore[no-untyped-call]

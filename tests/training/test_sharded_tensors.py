"""Plain tensors pass through; sharded ones are gathered."""

from __future__ import annotations

import socket

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from tests.helpers import ranks
from txclf.training import sharded_tensors


def test_plain_tensors_are_their_own_part_and_whole() -> None:
    tensor = torch.arange(4.0)
    assert sharded_tensors.local(tensor) is tensor
    state = {"a": tensor, "b": [tensor, 3], "c": {"d": None}}
    whole = sharded_tensors.whole(state)
    assert whole["a"] is tensor
    assert whole["b"][1] == 3
    assert whole["c"] == {"d": None}


def work(rank: int, port: int) -> None:
    """Check on one of two ranks that a sharded tensor is gathered on rank 0 only."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    tensor = torch.arange(10.0).reshape(5, 2)
    sharded = distribute_tensor(tensor, init_device_mesh("cpu", (2,)), [Shard(0)])
    state = {"weight": sharded, "state": {0: {"step": torch.tensor(3.0), "moments": [sharded]}}}
    found = sharded_tensors.whole(state, keep=rank == 0)
    for gathered in (found["weight"], found["state"][0]["moments"][0]):
        assert torch.equal(gathered, tensor) if rank == 0 else gathered is None
    assert float(found["state"][0]["step"]) == 3.0
    assert torch.equal(sharded_tensors.whole(sharded), tensor)
    ranks.leave()


def test_whole_keeps_gathered_tensors_where_asked() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks.spawn(work, (port,), 2)


def test_like_keeps_a_tensor_for_a_plain_parameter() -> None:
    tensor, parameter = torch.zeros(2), nn.Parameter(torch.ones(2))
    assert sharded_tensors.like(tensor, parameter) is tensor
    assert sharded_tensors.as_sharded(tensor, parameter) is tensor


def test_gather_and_release_leave_a_plain_model_alone() -> None:
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    sharded_tensors.gather(model)
    sharded_tensors.release(model)
    assert torch.equal(model.weight.detach(), before)

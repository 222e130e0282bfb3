"""Plain tensors pass through; sharded ones are tested with the strategies."""

from __future__ import annotations

import torch
from torch import nn

from txclf.training import sharded_tensors


def test_plain_tensors_are_their_own_part_and_whole() -> None:
    tensor = torch.arange(4.0)
    assert sharded_tensors.local(tensor) is tensor
    state = {"a": tensor, "b": [tensor, 3], "c": {"d": None}}
    whole = sharded_tensors.whole(state)
    assert whole["a"] is tensor
    assert whole["b"][1] == 3
    assert whole["c"] == {"d": None}


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

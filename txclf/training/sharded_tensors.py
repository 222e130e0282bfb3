"""Tensors that may be sharded over the workers (FSDP), and whole ones, by the same calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def gather(model: nn.Module) -> None:
    """Makes every weight whole on every rank until `release`: ranks may now run a different number of batches."""
    for module in _sharded(model):
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()


def release(model: nn.Module) -> None:
    """Back to shards."""
    for module in _sharded(model):
        module.reshard()
        # The root's own weights stay whole from its forward to its backward, as `fully_shard` has it.
        module.set_reshard_after_forward(id(module) != id(model), recurse=False)


def _sharded(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor: all of it where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(value: Any) -> Any:
    """A state with every sharded tensor made whole, on the CPU. All ranks call it together."""
    if isinstance(value, DTensor):
        return value.full_tensor().cpu()
    if isinstance(value, Mapping):
        return {key: whole(inner) for key, inner in value.items()}
    return [whole(inner) for inner in value] if isinstance(value, list) else value


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, sharded as a parameter of the same shape is."""
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value


def as_sharded(part: Tensor, parameter: Tensor) -> Tensor:
    """The tensor whose part on this rank is `part`, sharded as a parameter is."""
    if isinstance(parameter, DTensor):
        return DTensor.from_local(
            part, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
        )
    return part

"""Uniform access to tensors that are sharded over the workers (FSDP) and to tensors that are not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def gather(model: nn.Module) -> None:
    """Gather every weight on every rank until `release`; ranks may run a different number of batches meanwhile."""
    for module in _sharded(model):
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()


def release(model: nn.Module) -> None:
    """Shard the weights again."""
    for module in _sharded(model):
        module.reshard()
        # The root's own weights stay whole from its forward to its backward, as `fully_shard` has it.
        module.set_reshard_after_forward(id(module) != id(model), recurse=False)


def _sharded(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor, or all of it if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(value: Any, keep: bool = True) -> Any:
    """Return a state with every sharded tensor gathered, on the CPU. All ranks call it together.

    Tensors are gathered one after the other. A rank without `keep` drops each of them at once and returns None for it,
    so only the rank that needs the whole state holds it.
    """
    if isinstance(value, DTensor):
        tensor = value.full_tensor()
        return tensor.cpu() if keep else None
    if isinstance(value, Mapping):
        return {key: whole(inner, keep) for key, inner in value.items()}
    return [whole(inner, keep) for inner in value] if isinstance(value, list) else value


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """Return a whole tensor, sharded as a parameter of the same shape is."""
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value


def as_sharded(part: Tensor, parameter: Tensor) -> Tensor:
    """Return the tensor whose part on this rank is `part`, sharded as a parameter is."""
    if isinstance(parameter, DTensor):
        return DTensor.from_local(
            part, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
        )
    return part

"""Weights that a group of workers starts from: rank 0 reads them from storage and sends them to the other ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, distributed

from txclf.artifacts import checkpoints
from txclf.artifacts.checkpoints import LastIntact
from txclf.core.errors import TxclfError

Content = TypeVar("Content")


class _Place(NamedTuple):
    """Place of a tensor in a state that travels without its tensors."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def last_intact(folder: str, world_size: int) -> LastIntact:
    """Return the last checkpoint that is not damaged, with its state. All ranks call it together.

    Raises `StorageError` on every rank if all checkpoints are damaged.
    """

    def read() -> tuple[Any, LastIntact]:
        found = checkpoints.last_intact(folder, load_state=True)
        return found.state, found._replace(state=None)

    state, found = shared(read, world_size)
    return found._replace(state=state)


def shared(read: Callable[[], tuple[Any, Content]], world_size: int) -> tuple[Any, Content]:
    """Return what `read` returns on rank 0: a state with tensors, and any other content. All ranks call it together.

    The tensors are sent one by one over gloo, so a rank needs no more memory than for the state. An error of txclf is
    raised on every rank.
    """
    if world_size == 1 or not distributed.is_initialized():
        return read()
    group = distributed.new_group(backend="gloo")  # tensors on the CPU, also in a group of NCCL
    state, tensors = None, list[Tensor]()
    sent: list[Any] = [None]
    if distributed.get_rank() == 0:
        try:
            state, content = read()
            sent = [(_without_tensors(state, tensors), content)]
        except TxclfError as error:
            sent = [error]
    distributed.broadcast_object_list(sent, 0, group=group)
    if isinstance(sent[0], TxclfError):
        raise sent[0]
    places, content = sent[0]
    if distributed.get_rank() == 0:
        for tensor in tensors:
            _broadcast(tensor.contiguous(), group)
    else:
        state = _received(places, group)
    distributed.destroy_process_group(group)
    return state, content


def _without_tensors(value: Any, tensors: list[Tensor]) -> Any:
    """Return a value with a place instead of each tensor, which is appended to `tensors`."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return _Place(tuple(value.shape), value.dtype)
    if isinstance(value, Mapping):
        return {key: _without_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_without_tensors(item, tensors) for item in value)
    return value


def _received(value: Any, group: Any) -> Any:
    """Return a value of `_without_tensors` with the tensors that rank 0 sends in the same order."""
    if isinstance(value, _Place):
        tensor = torch.empty(value.shape, dtype=value.dtype)
        _broadcast(tensor, group)
        return tensor
    if isinstance(value, dict):
        return {key: _received(item, group) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_received(item, group) for item in value)
    return value


def _broadcast(tensor: Tensor, group: Any) -> None:
    """Send a tensor of rank 0 in place, as bytes, because gloo does not know every type of number."""
    if tensor.numel():
        distributed.broadcast(tensor.view(-1).view(torch.uint8), 0, group=group)

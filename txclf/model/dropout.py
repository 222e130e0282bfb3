"""Dropout (JMLR 15, 2014) that is fast on a CPU, where the dropout of torch takes up to a third of a step.

On a CPU the rate is rounded to a multiple of 1/256 and one random byte decides on each value. The scale of the kept
values follows the rounded rate. The generator of the bytes is seeded by that of torch, so `torch.manual_seed` makes
them repeatable.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F


class Dropout(nn.Module):
    """Dropout layer. In training it zeroes values with probability `rate` and scales the others by 1 / (1 - rate)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return values
        if values.device.type != "cpu" or torch.compiler.is_compiling():
            return F.dropout(values, self.rate)
        kept: Tensor = _Dropped.apply(values, RandomBytes().draw(values.shape), in_256ths(self.rate))  # type: ignore[no-untyped-call]
        return kept

    @property
    def p(self) -> float:
        """The rate, as `nn.Dropout` calls it."""
        return self.rate

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


class RandomBytes:
    """Stream of random bytes, seeded by the CPU generator of torch."""

    def __init__(self) -> None:
        self._stream = np.random.SFC64(int(torch.randint(2**62, ())))

    def draw(self, shape: torch.Size) -> Tensor:
        """Draw uniform bytes (uint8)."""
        count = shape.numel()
        return torch.from_numpy(self._stream.random_raw(count // 8 + 1).view(np.uint8)[:count]).view(shape)


def in_256ths(rate: float) -> int:
    """Return the number of byte values, of 256, that drop a value at a rate below 1."""
    return min(255, round(rate * 256))


def scale_of(dropped: int) -> float:
    """Return the factor of the kept values."""
    return 256.0 / (256 - dropped)


def keep(random: Tensor, dropped: int, out: Tensor) -> Tensor:
    """Write a mask to `out`: 1 if the random byte keeps the value, otherwise 0.

    The mask is of floats, because torch is several times faster with them than with booleans.
    """
    return torch.ge(random, dropped, out=out)


class _Dropped(torch.autograd.Function):
    """Dropout that keeps the bytes for the backward pass; a mask would take four times the memory."""

    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor, random: Tensor, dropped: int) -> Tensor:
        ctx.save_for_backward(random)
        ctx.dropped = dropped  # type: ignore[attr-defined]
        return _kept(values, random, dropped)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, slope: Tensor) -> tuple[Tensor, None, None]:
        (random,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return _kept(slope, random, ctx.dropped), None, None  # type: ignore[attr-defined]


def _kept(values: Tensor, random: Tensor, dropped: int) -> Tensor:
    result = keep(random, dropped, torch.empty(values.shape, dtype=values.dtype))
    return torch.addcmul(values.new_zeros(()), values, result, value=scale_of(dropped), out=result)

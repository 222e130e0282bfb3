"""Dropout (JMLR 15, 2014) that is cheap on a CPU too, where torch's own takes up to a third of a step.

There the rate is rounded to a 256th, one random byte decides on each value, and the scale of what is kept follows the
rounded rate. The bytes come from a generator seeded by torch's, so `torch.manual_seed` fixes them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F


class Dropout(nn.Module):
    """Sets values to zero with probability `rate` while training, and scales the others up by 1 / (1 - rate)."""

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

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


class RandomBytes:
    """A stream of random bytes, which torch's generator on the CPU fixes."""

    def __init__(self) -> None:
        self._stream = np.random.SFC64(int(torch.randint(2**62, ())))

    def draw(self, shape: torch.Size) -> Tensor:
        """Uniform bytes, uint8."""
        count = shape.numel()
        return torch.from_numpy(self._stream.random_raw(count // 8 + 1).view(np.uint8)[:count]).view(shape)


def in_256ths(rate: float) -> int:
    """A rate below 1 as the number of byte values that drop."""
    return min(255, round(rate * 256))


def scale_of(dropped: int) -> float:
    """What the values are multiplied by that are kept."""
    return 256.0 / (256 - dropped)


def keep(random: Tensor, dropped: int, out: Tensor) -> Tensor:
    """Writes 1 to `out` where a byte says that the value is kept, else 0.

    A float mask: torch compares into one, and multiplies by it, several times faster than with one of booleans.
    """
    return torch.ge(random, dropped, out=out)


class _Dropped(torch.autograd.Function):
    """Keeps the bytes for the backward pass instead of a mask, which would take four times the memory."""

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

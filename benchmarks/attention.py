"""Measure the two attention kernels on one thread of a CPU: torch's fused one and txclf's chunks of heads.

    .venv/bin/python benchmarks/attention.py [--tokens 16384] [--heads 8] [--head-width 32] [--times 7]

Each line is a batch of `--tokens` tokens in equally long rows, without padding and with a fifth of it. Prints the
milliseconds of the CPU for forward alone and for forward and backward, the median of `--times`: torch's kernel, chunks,
and their ratio. Above 1, chunks are faster. `txclf.model.attention.attend` follows the rule that these figures give.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from txclf.model import attention

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
LENGTHS = (8, 16, 32, 52, 64, 96, 128, 192, 260, 384, 512, 1024)


def milliseconds(run: Callable[[], object], times: int) -> float:
    run()
    found = []
    for _ in range(times):
        began = time.thread_time()  # of this thread, so that other programs do not count
        run()
        found.append(time.thread_time() - began)
    return statistics.median(found) * 1e3


def fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def chunks(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    bias = attention._bias(query, key, mask, causal=False)
    output: Tensor = attention._Chunked.apply(query, key, value, bias, 0)  # type: ignore[no-untyped-call]
    return output


def measure(
    kernel: Kernel, shape: tuple[int, ...], dtype: torch.dtype, padded: bool, backward: bool, times: int
) -> float:
    """Return the milliseconds of a kernel over rows (B, T, H, E)."""
    parts = [torch.randn(shape, dtype=dtype).transpose(1, 2).requires_grad_(backward) for _ in range(3)]
    slope = torch.randn(shape, dtype=dtype).transpose(1, 2)
    mask = None
    if padded:
        mask = torch.ones(shape[0], 1, 1, shape[1], dtype=torch.bool)
        mask[..., shape[1] - shape[1] // 5 :] = False

    def run() -> None:
        output = kernel(parts[0], parts[1], parts[2], mask)
        if backward:
            torch.autograd.grad(output, parts, slope)

    with torch.set_grad_enabled(backward):
        return milliseconds(run, times)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head-width", type=int, default=32)
    parser.add_argument("--times", type=int, default=7)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, length, padded in itertools.product(options.dtypes.split(","), LENGTHS, (False, True)):
        shape = (max(1, options.tokens // length), length, options.heads, options.head_width)
        line = f"{name:8} {length:5} tokens, {'padding' if padded else 'full':7}"
        for backward in (False, True):
            first, second = (
                measure(kernel, shape, getattr(torch, name), padded, backward, options.times)
                for kernel in (fused, chunks)
            )
            line += f"  {'and backward' if backward else 'forward'} {first:7.1f} {second:7.1f} ({first / second:4.2f})"
        print(line, flush=True)


if __name__ == "__main__":
    main()

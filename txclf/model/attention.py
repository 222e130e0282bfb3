"""Scaled dot-product attention (arXiv:1706.03762) with dropout of its weights, for training on a CPU.

torch's fused kernel has no dropout on a CPU. Its other path holds several matrices of all weights and draws a slow
random number for each: at 512 tokens that was half of a step. Here the weights are computed for a few heads at a time,
which stay in the cache, and once more in the backward pass, as FlashAttention does (arXiv:2205.14135).

Shapes: B rows, H heads, T queries, S keys, E head width, N = B H; a chunk has C of the N heads.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from txclf.model.dropout import RandomBytes, in_256ths, keep, scale_of

CHUNK = 2**19
"""Weights of a chunk: with what is computed from them they fit a core's share of the cache."""


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask_B11S: Tensor | None, causal: bool = False, dropout: float = 0.0
) -> Tensor:
    """What the queries (B, H, T, E) find among keys and values (B, H, S, E): (B, H, T, E).

    `mask_B11S` is True at the keys that may be seen; `causal`: each query sees the keys up to its own place.
    """
    dropped = in_256ths(dropout)
    if not dropped or query.device.type != "cpu" or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask_B11S, dropout_p=dropout, is_causal=causal
        )
    bias = _bias(query, key, mask_B11S, causal)
    found: Tensor = _Dropped.apply(query, key, value, bias, dropped)  # type: ignore[no-untyped-call]
    return found


def _bias(query: Tensor, key: Tensor, mask_B11S: Tensor | None, causal: bool) -> Tensor | None:
    """What is added to the scores, (N or 1, 1 or T, S): minus infinity at what may not be seen."""
    rows, heads, tokens, _ = query.shape
    seen = mask_B11S
    if causal:
        before = torch.ones(tokens, key.shape[2], dtype=torch.bool).tril()
        seen = before if seen is None else seen & before
    if seen is None:
        return None
    bias = torch.zeros(seen.shape, dtype=query.dtype).masked_fill_(~seen, float("-inf"))
    return bias[None] if mask_B11S is None else bias.expand(rows, heads, -1, -1).flatten(0, 1)


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropped: int
    ) -> Tensor:
        shape = query.shape
        query_NTE = (query * shape[3] ** -0.5).flatten(0, 1)
        key_NSE, value_NSE = key.flatten(0, 1), value.flatten(0, 1)
        found_NTE = torch.empty_like(query_NTE, memory_format=torch.contiguous_format)
        # All at once, so that they do not depend on the chunks, which depend on the number of threads.
        random_NTS = RandomBytes().draw(torch.Size([len(query_NTE), shape[2], key_NSE.shape[1]]))
        weights = _Space(query_NTE, key_NSE)
        kept = _Space(query_NTE, key_NSE)
        for part in _chunks(query_NTE, key_NSE):
            weights_CTS = _weights(query_NTE[part], key_NSE[part], bias, part, weights.of(part))
            weights_CTS.mul_(keep(random_NTS[part], dropped, kept.of(part)))
            torch.bmm(weights_CTS, value_NSE[part], out=found_NTE[part])
        found_NTE.mul_(scale_of(dropped))
        ctx.save_for_backward(query_NTE, key_NSE, value_NSE, found_NTE, random_NTS, bias)  # type: ignore[arg-type]
        ctx.dropped, ctx.shape = dropped, shape  # type: ignore[attr-defined]
        return found_NTE.view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, slope: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query_NTE, key_NSE, value_NSE, found_NTE, random_NTS, bias = ctx.saved_tensors  # type: ignore[attr-defined]
        dropped, shape = ctx.dropped, ctx.shape  # type: ignore[attr-defined]
        slope_NTE = slope.reshape(query_NTE.shape)
        # A weight's slope is taken from its row's mean of them, by the softmax: that mean is this product.
        mean_NT1 = (slope_NTE * found_NTE).sum(dim=2, keepdim=True)
        slope_NTE = slope_NTE * scale_of(dropped)
        of_query, of_key, of_value = (
            torch.empty(part.shape, dtype=part.dtype) for part in (query_NTE, key_NSE, value_NSE)
        )
        weights, kept, slopes = (_Space(query_NTE, key_NSE) for _ in range(3))
        for part in _chunks(query_NTE, key_NSE):
            weights_CTS = _weights(query_NTE[part], key_NSE[part], bias, part, weights.of(part))
            slope_CTS = torch.bmm(slope_NTE[part], value_NSE[part].mT, out=slopes.of(part))
            kept_CTS = keep(random_NTS[part], dropped, kept.of(part))
            slope_CTS.mul_(kept_CTS).sub_(mean_NT1[part]).mul_(weights_CTS)
            torch.bmm(kept_CTS.mul_(weights_CTS).mT, slope_NTE[part], out=of_value[part])
            torch.bmm(slope_CTS, key_NSE[part], out=of_query[part])
            torch.bmm(slope_CTS.mT, query_NTE[part], out=of_key[part])
        of_query.mul_(shape[3] ** -0.5)
        keys = (shape[0], shape[1], -1, shape[3])
        return of_query.view(shape), of_key.view(keys), of_value.view(keys), None, None


class _Space:
    """Memory for a matrix of a chunk's heads, taken once for all chunks."""

    def __init__(self, query_NTE: Tensor, key_NSE: Tensor) -> None:
        heads = min(len(query_NTE), _chunk_heads(query_NTE, key_NSE))
        self.whole = torch.empty(heads, query_NTE.shape[1], key_NSE.shape[1], dtype=query_NTE.dtype)

    def of(self, part: slice) -> Tensor:
        return self.whole[: part.stop - part.start]


def _chunk_heads(query_NTE: Tensor, key_NSE: Tensor) -> int:
    """Heads of a chunk: one for each thread at least."""
    return max(torch.get_num_threads(), CHUNK // (query_NTE.shape[1] * key_NSE.shape[1]))


def _chunks(query_NTE: Tensor, key_NSE: Tensor) -> Iterator[slice]:
    heads, size = len(query_NTE), _chunk_heads(query_NTE, key_NSE)
    for start in range(0, heads, size):
        yield slice(start, min(start + size, heads))


def _weights(query_CTE: Tensor, key_CSE: Tensor, bias: Tensor | None, part: slice, out: Tensor) -> Tensor:
    scores_CTS = torch.bmm(query_CTE, key_CSE.mT, out=out)
    if bias is not None:
        scores_CTS.add_(bias if len(bias) == 1 else bias[part])
    return torch.softmax(scores_CTS, dim=2, out=scores_CTS)

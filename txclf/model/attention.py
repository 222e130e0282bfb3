"""Scaled dot-product attention (arXiv:1706.03762) for training on a CPU, with and without dropout of the weights.

The fused kernel of torch has no dropout on a CPU. The fallback holds several matrices of all weights and draws a slow
random number per weight, which took half of a step at 512 tokens. In bf16, the backward pass of the fused kernel takes
up to ten times as long as the matrix products. Here the weights are computed for a few heads at a time, so that they
stay in the cache, and again in the backward pass, as in FlashAttention (arXiv:2205.14135).

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
"""Weights per chunk. They and the values computed from them fit the share of the cache of one core."""


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask_B11S: Tensor | None, *, causal: bool = False, dropout: float = 0.0
) -> Tensor:
    """Return the attention output (B, H, T, E) of queries (B, H, T, E) over keys and values (B, H, S, E).

    `mask_B11S` is True at the keys to attend to. With `causal`, each query attends to the keys up to its own position.
    """
    dropped = in_256ths(dropout)
    fused_is_slow = dropped > 0 or query.dtype == torch.bfloat16
    if not fused_is_slow or query.device.type != "cpu" or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask_B11S, dropout_p=dropout, is_causal=causal
        )
    bias = _bias(query, key, mask_B11S, causal)
    output: Tensor = _Chunked.apply(query, key, value, bias, dropped)  # type: ignore[no-untyped-call]
    return output


def _bias(query: Tensor, key: Tensor, mask_B11S: Tensor | None, causal: bool) -> Tensor | None:
    """Return the bias of the scores, (N or 1, 1 or T, S): minus infinity at masked keys, otherwise 0."""
    rows, heads, tokens, _ = query.shape
    seen = mask_B11S
    if causal:
        before = torch.ones(tokens, key.shape[2], dtype=torch.bool).tril()
        seen = before if seen is None else seen & before
    if seen is None:
        return None
    bias = torch.zeros(seen.shape, dtype=query.dtype).masked_fill_(~seen, float("-inf"))
    return bias[None] if mask_B11S is None else bias.expand(rows, heads, -1, -1).flatten(0, 1)


class _Chunked(torch.autograd.Function):
    """Attention by chunks, which keeps random bytes for the backward pass instead of the weights."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropped: int
    ) -> Tensor:
        shape = query.shape
        query_NTE = (query * shape[3] ** -0.5).flatten(0, 1)
        key_NSE, value_NSE = key.flatten(0, 1), value.flatten(0, 1)
        output_NTE = torch.empty_like(query_NTE, memory_format=torch.contiguous_format)
        # Drawn at once, because the chunks depend on the number of threads and the bytes must not.
        size = torch.Size([len(query_NTE), shape[2], key_NSE.shape[1]])
        random_NTS = RandomBytes().draw(size) if dropped else None
        weights = _Buffer(query_NTE, key_NSE)
        kept = _Buffer(query_NTE, key_NSE)
        for part in _chunks(query_NTE, key_NSE):
            weights_CTS = _weights(query_NTE[part], key_NSE[part], bias, part, weights.of(part))
            if random_NTS is not None:
                weights_CTS.mul_(keep(random_NTS[part], dropped, kept.of(part)))
            torch.bmm(weights_CTS, value_NSE[part], out=output_NTE[part])
        if dropped:
            output_NTE.mul_(scale_of(dropped))
        ctx.save_for_backward(query_NTE, key_NSE, value_NSE, output_NTE, random_NTS, bias)  # type: ignore[arg-type]
        ctx.dropped, ctx.shape = dropped, shape  # type: ignore[attr-defined]
        return output_NTE.view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, slope: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query_NTE, key_NSE, value_NSE, output_NTE, random_NTS, bias = ctx.saved_tensors  # type: ignore[attr-defined]
        dropped, shape = ctx.dropped, ctx.shape  # type: ignore[attr-defined]
        slope_NTE = slope.reshape(query_NTE.shape)
        # The softmax subtracts from each gradient the weighted mean of its row, which equals this product.
        mean_NT1 = (slope_NTE * output_NTE).sum(dim=2, keepdim=True)
        if dropped:
            slope_NTE = slope_NTE * scale_of(dropped)
        of_query, of_key, of_value = (
            torch.empty(part.shape, dtype=part.dtype) for part in (query_NTE, key_NSE, value_NSE)
        )
        weights, kept, slopes = (_Buffer(query_NTE, key_NSE) for _ in range(3))
        for part in _chunks(query_NTE, key_NSE):
            weights_CTS = _weights(query_NTE[part], key_NSE[part], bias, part, weights.of(part))
            slope_CTS = torch.bmm(slope_NTE[part], value_NSE[part].mT, out=slopes.of(part))
            seen_CTS = weights_CTS  # the weights after dropout
            if random_NTS is not None:
                kept_CTS = keep(random_NTS[part], dropped, kept.of(part))
                slope_CTS.mul_(kept_CTS)
                seen_CTS = kept_CTS.mul_(weights_CTS)
            slope_CTS.sub_(mean_NT1[part]).mul_(weights_CTS)
            torch.bmm(seen_CTS.mT, slope_NTE[part], out=of_value[part])
            torch.bmm(slope_CTS, key_NSE[part], out=of_query[part])
            torch.bmm(slope_CTS.mT, query_NTE[part], out=of_key[part])
        of_query.mul_(shape[3] ** -0.5)
        keys = (shape[0], shape[1], -1, shape[3])
        return of_query.view(shape), of_key.view(keys), of_value.view(keys), None, None


class _Buffer:
    """Buffer for a matrix per head of a chunk, allocated once for all chunks."""

    def __init__(self, query_NTE: Tensor, key_NSE: Tensor) -> None:
        heads = min(len(query_NTE), _chunk_heads(query_NTE, key_NSE))
        self.whole = torch.empty(heads, query_NTE.shape[1], key_NSE.shape[1], dtype=query_NTE.dtype)

    def of(self, part: slice) -> Tensor:
        return self.whole[: part.stop - part.start]


def _chunk_heads(query_NTE: Tensor, key_NSE: Tensor) -> int:
    """Return the heads per chunk, at least one per thread."""
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

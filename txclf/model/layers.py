"""Transformer encoder blocks.

Shapes: B rows, T tokens, D width, H heads, E = D / H, F feed-forward. A mask is True at real tokens; no mask means that
all tokens are real, which allows the fastest attention kernel.

Sources: Attention Is All You Need (arXiv:1706.03762); pre-norm (arXiv:2002.04745); rotary positions (arXiv:2104.09864).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from txclf.config.sections import Model
from txclf.model.attention import attend
from txclf.model.dropout import Dropout


class Positions(nn.Module):
    """Sinusoidal or learned positions, added to token embeddings. `rotary` and `none` add nothing here."""

    def __init__(self, kind: str, max_length: int, width: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "learned":
            self.table = nn.Parameter(torch.randn(max_length, width) * 0.02)
        elif kind == "sinusoidal":
            self.register_buffer("table", sinusoids(max_length, width), persistent=False)

    def forward(self, hidden_BTD: Tensor, start: int = 0) -> Tensor:
        """Add the positions from `start` on."""
        if self.kind in ("learned", "sinusoidal"):
            table: Tensor = self.table[start : start + hidden_BTD.shape[1]]
            return hidden_BTD + table
        return hidden_BTD


def sinusoids(length: int, width: int) -> Tensor:
    """Return sine and cosine positions, (length, width), as in arXiv:1706.03762 section 3.5."""
    angles = torch.arange(length)[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).reshape(length, width)


class Rotary(nn.Module):
    """Rotation of queries and keys by their position, so that attention depends on distances (arXiv:2104.09864)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, max_length: int, head_width: int) -> None:
        super().__init__()
        rates = torch.exp(torch.arange(0, head_width, 2) * (-math.log(10_000.0) / head_width))
        angles = torch.arange(max_length)[:, None] * rates
        self.register_buffer("cos", angles.cos(), persistent=False)  # (max_length, E / 2)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, heads_BHTE: Tensor, start: int = 0) -> Tensor:
        """Rotate heads by the positions from `start` on."""
        first, second = heads_BHTE.chunk(2, dim=-1)
        cos = self.cos[start : start + heads_BHTE.shape[2]].to(heads_BHTE.dtype)
        sin = self.sin[start : start + heads_BHTE.shape[2]].to(heads_BHTE.dtype)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int, dropout: float, rotary: Rotary | None) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.rotary = rotary
        self.inputs = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, hidden_BTD: Tensor, mask_B11T: Tensor | None) -> Tensor:
        return self.mix(*self.project(hidden_BTD), mask_B11T)

    def project(self, hidden_BTD: Tensor, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value, each (B, H, T, E). `start` is the position of the first token."""
        rows, tokens, width = hidden_BTD.shape
        split = self.inputs(hidden_BTD).view(rows, tokens, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        if self.rotary is not None:
            query, key = self.rotary(query, start), self.rotary(key, start)
        return query, key, value

    def mix(self, query: Tensor, key: Tensor, value: Tensor, mask_B11T: Tensor | None, causal: bool = False) -> Tensor:
        """Return the attention output (B, T, D). With `causal`, a query attends to the keys up to its own position."""
        dropout = self.dropout if self.training else 0.0
        mixed = attend(query, key, value, mask_B11T, causal=causal, dropout=dropout)
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output


class Block(nn.Module):
    """Attention branch and feed-forward branch, each with residual, norm and dropout."""

    def __init__(self, config: Model, rotary: Rotary | None) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.pre_norm = config.norm == "pre"
        self.attention = Attention(width, config.num_heads, config.attention_dropout, rotary)
        self.attention_norm = nn.LayerNorm(width)
        self.feedforward = nn.Sequential(
            nn.Linear(width, inner), activation_module(config.activation), nn.Linear(inner, width)
        )
        self.feedforward_norm = nn.LayerNorm(width)
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden_BTD: Tensor, mask_B11T: Tensor | None) -> Tensor:
        if self.pre_norm:
            hidden_BTD = hidden_BTD + self.dropout(self.attention(self.attention_norm(hidden_BTD), mask_B11T))
            branch_BTD: Tensor = self.dropout(self.feedforward(self.feedforward_norm(hidden_BTD)))
            return hidden_BTD + branch_BTD
        hidden_BTD = self.attention_norm(hidden_BTD + self.dropout(self.attention(hidden_BTD, mask_B11T)))
        output: Tensor = self.feedforward_norm(hidden_BTD + self.dropout(self.feedforward(hidden_BTD)))
        return output


class Pooling(nn.Module):
    """Pooling of real tokens: (B, T, D) and a mask (B, T) to (B, D), or to (B, 2 D) with `mean_max`.

    `cls` takes position 0.
    """

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "attention":
            self.score = nn.Linear(width, 1, bias=False)  # a bias would not change the softmax

    def forward(self, hidden_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        if self.kind == "cls":
            return hidden_BTD[:, 0]
        if self.kind == "max":
            return _max(hidden_BTD, mask_BT)
        if self.kind == "mean_max":
            return torch.cat([_mean(hidden_BTD, mask_BT), _max(hidden_BTD, mask_BT)], dim=-1)
        if self.kind == "attention":
            scores_BT1 = self.score(hidden_BTD)
            if mask_BT is not None:
                scores_BT1 = scores_BT1.masked_fill(~mask_BT[..., None], float("-inf"))
            weights_BT1: Tensor = scores_BT1.softmax(dim=1)
            return (weights_BT1 * hidden_BTD).sum(dim=1)
        return _mean(hidden_BTD, mask_BT)


def _mean(hidden_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    if mask_BT is None:
        return hidden_BTD.mean(dim=1)
    weights_BT1 = mask_BT[..., None].to(hidden_BTD.dtype)
    return (hidden_BTD * weights_BT1).sum(dim=1) / weights_BT1.sum(dim=1)


def _max(hidden_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    if mask_BT is not None:
        hidden_BTD = hidden_BTD.masked_fill(~mask_BT[..., None], float("-inf"))
    return hidden_BTD.amax(dim=1)


def activation_module(name: str) -> nn.Module:
    """Return the module of an activation, `gelu` or `relu`."""
    return nn.GELU() if name == "gelu" else nn.ReLU()

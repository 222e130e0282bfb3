"""Encoder-decoder transformer (arXiv:1706.03762) with the encoder blocks of the classifier.

Shapes: B rows, S source tokens, T target tokens, D width, H heads, E = D / H, V target vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from txclf.config.sections import Model
from txclf.model.attention import attend
from txclf.model.dropout import Dropout
from txclf.model.layers import Block, Positions, Rotary


@dataclass
class Memory:
    """Keys and values that a decoder block caches: those of the source, and those of the target tokens so far."""

    source_key: Tensor
    """(B, H, S, E)."""
    source_value: Tensor
    key: Tensor | None = None
    """(B, H, T, E)."""
    value: Tensor | None = None

    def select(self, rows: Tensor, *, same_sources: bool = False) -> None:
        """Keep these rows (of B), in this order. A row may be repeated.

        With `same_sources` each of them has the source of the row in its place, so sources are not copied.
        """
        if not same_sources:
            self.source_key, self.source_value = self.source_key[rows], self.source_value[rows]
        if self.key is not None and self.value is not None:
            self.key, self.value = self.key[rows], self.value[rows]


class DecoderBlock(Block):
    """Block with causal self-attention, and between its branches one that attends to the source."""

    def __init__(self, config: Model, rotary: Rotary | None) -> None:
        super().__init__(config, rotary)
        self.heads = config.num_heads
        self.source_query = nn.Linear(config.hidden_size, config.hidden_size)
        self.source_inputs = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.source_output = nn.Linear(config.hidden_size, config.hidden_size)
        self.source_norm = nn.LayerNorm(config.hidden_size)

    def memory(self, source_BSD: Tensor) -> Memory:
        """Return the keys and values of an encoded source."""
        rows, tokens, width = source_BSD.shape
        split = self.source_inputs(source_BSD).view(rows, tokens, 2, self.heads, width // self.heads)
        key, value = split.permute(2, 0, 3, 1, 4)
        return Memory(key, value)

    def decode(self, hidden_BTD: Tensor, memory: Memory, source_mask_B11S: Tensor | None) -> Tensor:
        """Return the hidden states (B, T, D) of target tokens that follow those in `memory`.

        In evaluation mode, their keys and values are added to `memory`.
        """
        if self.pre_norm:
            hidden_BTD = hidden_BTD + self.dropout(self._attend(self.attention_norm(hidden_BTD), memory))
            source_BTD = self._attend_source(self.source_norm(hidden_BTD), memory, source_mask_B11S)
            hidden_BTD = hidden_BTD + self.dropout(source_BTD)
            branch_BTD: Tensor = self.dropout(self.feedforward(self.feedforward_norm(hidden_BTD)))
            return hidden_BTD + branch_BTD
        hidden_BTD = self.attention_norm(hidden_BTD + self.dropout(self._attend(hidden_BTD, memory)))
        source_BTD = self._attend_source(hidden_BTD, memory, source_mask_B11S)
        hidden_BTD = self.source_norm(hidden_BTD + self.dropout(source_BTD))
        output: Tensor = self.feedforward_norm(hidden_BTD + self.dropout(self.feedforward(hidden_BTD)))
        return output

    def _attend(self, hidden_BTD: Tensor, memory: Memory) -> Tensor:
        attention = self.attention
        query, key, value = attention.project(hidden_BTD, 0 if memory.key is None else memory.key.shape[2])
        if memory.key is not None and memory.value is not None:
            key, value = torch.cat([memory.key, key], dim=2), torch.cat([memory.value, value], dim=2)
        if not self.training:
            memory.key, memory.value = key, value
        # A single token after others attends to all of them, so it needs no causal mask.
        return attention.mix(query, key, value, None, causal=query.shape[2] > 1)

    def _attend_source(self, hidden_BTD: Tensor, memory: Memory, source_mask_B11S: Tensor | None) -> Tensor:
        rows, tokens, width = hidden_BTD.shape
        query = self.source_query(hidden_BTD).view(rows, tokens, self.heads, width // self.heads).transpose(1, 2)
        dropout = self.attention.dropout if self.training else 0.0
        mixed = attend(query, memory.source_key, memory.source_value, source_mask_B11S, dropout=dropout)
        output: Tensor = self.source_output(mixed.transpose(1, 2).reshape(rows, tokens, width))
        return output


class Seq2SeqTransformer(nn.Module):
    """Encoder-decoder: `forward(input_ids (B, S), mask (B, S) or None, target_ids (B, T))` returns logits (B, T, V).

    They are the logits of the token after each target token, in float32. `mask` is True at real tokens. Targets need no
    mask, because later tokens do not change earlier ones. `shared`: source and target have one vocabulary.
    """

    def __init__(self, config: Model, vocab_size: int, target_vocab_size: int, max_length: int, shared: bool) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        length = max_length + 2  # [BOS] and [EOS]
        self.embedding = nn.Embedding(vocab_size, width)
        tied = config.tie_embeddings
        self.target_embedding = None if shared and tied else nn.Embedding(target_vocab_size, width)
        self.output = None if tied else nn.Linear(width, target_vocab_size)
        self.positions = Positions(config.position_encoding, length, width)
        self.target_positions = Positions(config.position_encoding, length, width)
        rotary = Rotary(length, width // config.num_heads) if config.position_encoding == "rotary" else None
        self.embedding_dropout = Dropout(
            config.dropout if config.embedding_dropout is None else config.embedding_dropout
        )
        self.blocks = nn.ModuleList(Block(config, rotary) for _ in range(config.num_layers))
        self.decoder = nn.ModuleList(
            DecoderBlock(config, rotary) for _ in range(config.num_decoder_layers or config.num_layers)
        )
        # Post-norm blocks end with a norm; pre-norm blocks end with a sum that is not normalized.
        norms = [nn.LayerNorm(width) if config.norm == "pre" else nn.Identity() for _ in range(2)]
        self.final_norm, self.decoder_norm = norms
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                # With the scale by sqrt(width) below, an embedded token has unit variance.
                nn.init.normal_(module.weight, std=self.config.hidden_size**-0.5)

    def forward(self, input_ids: Tensor, mask: Tensor | None, target_ids: Tensor) -> Tensor:
        return self.decode(target_ids, self.encode(input_ids, mask), mask)

    def encode(self, input_ids: Tensor, mask: Tensor | None) -> list[Memory]:
        """Return the keys and values of the sources for each decoder block."""
        hidden_BSD = self.positions(self.embedding(input_ids) * math.sqrt(self.config.hidden_size))
        hidden_BSD = self.embedding_dropout(hidden_BSD)
        mask_B11S = None if mask is None else mask[:, None, None, :]
        for block in self.blocks:
            hidden_BSD = block(hidden_BSD, mask_B11S)
        hidden_BSD = self.final_norm(hidden_BSD)
        return [block.memory(hidden_BSD) for block in self.decoder]  # type: ignore[operator]

    def decode(self, target_ids: Tensor, memories: list[Memory], mask: Tensor | None) -> Tensor:
        """Return the logits (B, T, V) of the token after each target token. The targets follow those in `memories`.

        In evaluation mode, the targets are added to `memories`, so that the next tokens can follow.
        """
        seen = memories[0].key
        start = 0 if seen is None else seen.shape[2]
        embedding = self.embedding if self.target_embedding is None else self.target_embedding
        hidden_BTD = embedding(target_ids) * math.sqrt(self.config.hidden_size)
        hidden_BTD = self.embedding_dropout(self.target_positions(hidden_BTD, start))
        mask_B11S = None if mask is None else mask[:, None, None, :]
        for block, memory in zip(self.decoder, memories, strict=True):
            hidden_BTD = block.decode(hidden_BTD, memory, mask_B11S)  # type: ignore[operator]
        hidden_BTD = self.decoder_norm(hidden_BTD)
        if self.output is None:
            return F.linear(hidden_BTD, embedding.weight).float()
        logits: Tensor = self.output(hidden_BTD)
        return logits.float()

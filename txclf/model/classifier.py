"""Transformer classifier: token embedding, encoder blocks, pooling over real tokens, head.

Shapes: B rows, W sequences of these rows, T tokens, D width, C classes, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from txclf.config.sections import Model
from txclf.model.dropout import Dropout
from txclf.model.layers import Block, Pooling, Positions, Rotary, activation_module

SEGMENT_STD = 0.1
"""Initial scale of segment embeddings relative to token embeddings. The column must not outweigh the words."""


def by_row(logits_WC: Tensor, windows_W: Tensor | None, rows: int) -> Tensor:
    """Return the logits of rows (B, C), each the mean over its windows.

    `windows_W` is the row of each window, or None if every row has one window.
    """
    if windows_W is None:
        return logits_WC
    counts_B = torch.bincount(windows_W, minlength=rows)
    sums_BC = torch.zeros(rows, logits_WC.shape[1], device=logits_WC.device).index_add(0, windows_W, logits_WC)
    return sums_BC / counts_B[:, None]


class TransformerClassifier(nn.Module):
    """Encoder classifier: `forward(input_ids (B, T), mask (B, T) or None)` returns logits (B, C) in float32.

    `mask` is True at real tokens; None means that all tokens are real. Tokens at masked positions change no logit.
    `shift` (B, T, D) is added to the token embeddings, which have a length of about 1. With `num_segments`, `segments`
    (B, T) is the text column of each token, and its segment embedding is added too.
    """

    def __init__(
        self, config: Model, vocab_size: int, num_classes: int, max_length: int, num_segments: int = 0
    ) -> None:
        super().__init__()
        width = config.hidden_size
        self.config = config
        self.embedding = nn.Embedding(vocab_size, width)
        self.frozen: Tensor | None
        self.register_buffer("frozen", None, persistent=False)
        self.first = nn.Parameter(torch.empty(width)) if config.pooling == "cls" else None
        length = max_length + (self.first is not None)
        self.positions = Positions(config.position_encoding, length, width)
        rotary = Rotary(length, width // config.num_heads) if config.position_encoding == "rotary" else None
        embedding_dropout = config.dropout if config.embedding_dropout is None else config.embedding_dropout
        self.embedding_dropout = Dropout(embedding_dropout)
        self.segments = nn.Embedding(num_segments, width) if num_segments else None
        self.blocks = nn.ModuleList(Block(config, rotary) for _ in range(config.num_layers))
        # Post-norm blocks end with a norm; pre-norm blocks end with a sum that is not normalized.
        self.final_norm = nn.LayerNorm(width) if config.norm == "pre" else nn.Identity()
        self.pooling = Pooling(config.pooling, width)
        pooled = 2 * width if config.pooling == "mean_max" else width
        head: list[nn.Module] = [Dropout(config.dropout)]
        if config.classifier_hidden_size:
            head += [nn.Linear(pooled, config.classifier_hidden_size), activation_module(config.activation)]
            head += [Dropout(config.dropout)]
        self.head = nn.Sequential(*head, nn.Linear(config.classifier_hidden_size or pooled, num_classes))
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # With the scale by sqrt(width) in `forward`, an embedded token has unit variance.
        nn.init.normal_(self.embedding.weight, std=self.config.hidden_size**-0.5)
        if self.first is not None:
            nn.init.normal_(self.first, std=self.config.hidden_size**-0.5)
        if self.segments is not None:
            nn.init.normal_(self.segments.weight, std=SEGMENT_STD * self.config.hidden_size**-0.5)

    def layer_depths(self) -> dict[str, int | None]:
        """Return the depth of each parameter by name: 0 for embeddings, then the blocks, None for pooling and head."""
        depths: dict[str, int | None] = {}
        for name, _ in self.named_parameters():
            part, _, rest = name.partition(".")
            if part in ("pooling", "head"):
                depths[name] = None
            elif part == "blocks":
                depths[name] = 1 + int(rest.partition(".")[0])
            else:
                depths[name] = len(self.blocks) if part == "final_norm" else 0
        return depths

    def set_embeddings(self, vectors_VD: Tensor, frozen_V: Tensor | None = None) -> None:
        """Set the token embeddings to pre-trained vectors. Embeddings with `frozen_V` True are not trained."""
        with torch.no_grad():
            self.embedding.weight.copy_(vectors_VD)
        self.frozen = frozen_V

    @property
    def vector_size(self) -> int:
        """Numbers of the vector that the head reads of a row."""
        return next(layer.in_features for layer in self.head if isinstance(layer, nn.Linear))

    def forward(
        self,
        input_ids: Tensor,
        mask: Tensor | None = None,
        shift: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:
        logits: Tensor = self.head(self.vectors(input_ids, mask, shift, segments))
        return logits.float()

    def vectors(
        self,
        input_ids: Tensor,
        mask: Tensor | None = None,
        shift: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:
        """Return the pooled vectors (B, `vector_size`), which the head reads. The arguments are those of `forward`."""
        pooled: Tensor = self.pooling(*self.encode(input_ids, mask, shift, segments))
        return pooled

    def encode(
        self,
        input_ids: Tensor,
        mask: Tensor | None = None,
        shift: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the vectors (B, T, D) that are pooled and their mask (B, T), with the first vector of `cls`."""
        hidden_BTD = self.embedding(input_ids)
        if self.frozen is not None:
            hidden_BTD = torch.where(self.frozen[input_ids][..., None], hidden_BTD.detach(), hidden_BTD)
        if shift is not None:
            hidden_BTD = hidden_BTD + shift
        if self.segments is not None:
            assert segments is not None, "a model with segment embeddings needs the column of each token"
            hidden_BTD = hidden_BTD + self.segments(segments)
        if self.first is not None:
            first_B1D = self.first.expand(len(input_ids), 1, -1)
            hidden_BTD = torch.cat([first_B1D, hidden_BTD], dim=1)
            mask = None if mask is None else F.pad(mask, (1, 0), value=True)
        hidden_BTD = self.positions(hidden_BTD * math.sqrt(self.config.hidden_size))
        hidden_BTD = self.embedding_dropout(hidden_BTD)
        mask_B11T = None if mask is None else mask[:, None, None, :]
        for block in self.blocks:
            hidden_BTD = block(hidden_BTD, mask_B11T)
        return self.final_norm(hidden_BTD), mask

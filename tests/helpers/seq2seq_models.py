"""A small encoder-decoder with random weights, and random sources for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from txclf.config.sections import Model
from txclf.model.seq2seq import Seq2SeqTransformer

BEGIN, END, VOCABULARY = 1, 2, 7


def make_seq2seq(shared: bool = True, **settings: Any) -> Seq2SeqTransformer:
    torch.manual_seed(3)
    config = Model(num_layers=2, hidden_size=16, num_heads=2, intermediate_size=32, **settings)
    return Seq2SeqTransformer(config, VOCABULARY, VOCABULARY, 12, shared).eval()


def sources(rows: int, tokens: int) -> Tensor:
    return torch.randint(3, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(rows))

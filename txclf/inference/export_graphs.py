"""Graphs that `export` writes, as pure functions of tensors: one for a classifier, two for a `seq2seq` model.

Shapes: B sequences, T their tokens, C classes; S source tokens, P target tokens so far, V target vocabulary, H heads,
E = hidden_size / num_heads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim

from txclf.inference.classifier import Classifier
from txclf.inference.load import Model
from txclf.inference.metadata import BundleMetadata
from txclf.inference.seq2seq import Seq2Seq
from txclf.model.seq2seq import Memory, Seq2SeqTransformer


class Graph(NamedTuple):
    """Network that is exported as one file, with its inputs and outputs."""

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    """Example inputs by name, in order."""
    shapes: dict[str, dict[int, Any]]
    """Dynamic axes of each input."""
    outputs: list[str]
    """Names of the outputs, in order."""


class ClassifierGraph(nn.Module):
    """Graph of a classifier.

    Inputs: `input_ids` (B, T), `mask` (B, T) and, if the model tells text columns apart, `segments` (B, T). Outputs:
    `logits` (B, C) and calibrated `probabilities` (B, C).
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.model = classifier.model
        self.temperature = classifier.temperature
        self.is_multilabel = classifier.is_multilabel

    def forward(self, input_ids: Tensor, mask: Tensor, segments: Tensor | None = None) -> tuple[Tensor, Tensor]:
        logits_BC = self.model(input_ids, mask, segments=segments)
        scaled_BC = logits_BC / self.temperature
        return logits_BC, scaled_BC.sigmoid() if self.is_multilabel else scaled_BC.softmax(dim=1)


class EncoderGraph(nn.Module):
    """Graph of the encoder of a `seq2seq` model.

    Inputs: `input_ids` (B, S) and `mask` (B, S). Outputs: the keys and values of the source for each decoder block,
    `source_key_0`, `source_value_0`, …, each (B, H, S, E).
    """

    def __init__(self, model: Seq2SeqTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        memories = self.model.encode(input_ids, mask)
        return tuple(side for memory in memories for side in (memory.source_key, memory.source_value))


class DecoderGraph(nn.Module):
    """Graph of one step of the decoder of a `seq2seq` model.

    Inputs: `token` (B, 1), `mask` (B, S) and `cache`: the outputs of the encoder, then `key_0`, `value_0`, …, each
    (B, H, P, E) with P = 0 in the first step. Outputs: `logits` (B, V) of the next token, and the keys and values
    (B, H, P + 1, E) for the next step.
    """

    def __init__(self, model: Seq2SeqTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, token: Tensor, mask: Tensor, *cache: Tensor) -> tuple[Tensor, ...]:
        half = len(cache) // 2
        source, past = cache[:half], cache[half:]
        memories = [Memory(*source[i : i + 2], *past[i : i + 2]) for i in range(0, half, 2)]
        logits = self.model.decode(token, memories, mask)[:, -1]
        sides = (side for memory in memories for side in (memory.key, memory.value))
        return logits, *(side for side in sides if side is not None)


def graphs(model: Model) -> list[Graph]:
    """Return the graphs of a model: one of a classifier, encoder and decoder of a `seq2seq` model."""
    max_length = model.metadata.max_length
    model.model.requires_grad_(False)
    rows, tokens = Dim("rows", min=1, max=65_536), Dim("tokens", min=1, max=max_length)
    ids = torch.full((3, min(max_length, 5)), 5)
    inputs = {"input_ids": ids, "mask": torch.ones(ids.shape, dtype=torch.bool)}
    sequence = {0: rows, 1: tokens}
    if isinstance(model, Seq2Seq):
        return _seq2seq_graphs(model, inputs, sequence)
    if _has_segments(model.metadata):
        inputs["segments"] = torch.zeros_like(ids)
    shapes = dict.fromkeys(inputs, sequence)
    return [Graph("model", ClassifierGraph(model).eval(), inputs, shapes, ["logits", "probabilities"])]


def _has_segments(metadata: BundleMetadata) -> bool:
    """Return True if the network needs the text column of each token."""
    if metadata.special_tokens is not None:
        return metadata.special_tokens.token_types > 0 and len(metadata.text_columns) > 1
    return metadata.num_segments > 0


def _seq2seq_graphs(model: Seq2Seq, inputs: dict[str, Tensor], sequence: dict[int, Any]) -> list[Graph]:
    settings = model.metadata.model
    blocks = range(settings.num_decoder_layers or settings.num_layers)
    source = [f"source_{side}_{block}" for block in blocks for side in ("key", "value")]
    past = [f"{side}_{block}" for block in blocks for side in ("key", "value")]
    encoder = Graph(
        "encoder",
        EncoderGraph(model.model).eval(),
        inputs,
        {"input_ids": sequence, "mask": sequence},
        source,
    )
    ids, rows = inputs["input_ids"], sequence[0]
    head_size = settings.hidden_size // settings.num_heads
    cache = {name: torch.zeros(len(ids), settings.num_heads, ids.shape[1], head_size) for name in source}
    cache |= {name: torch.zeros(len(ids), settings.num_heads, 3, head_size) for name in past}
    past_tokens = Dim("past", min=0, max=model.metadata.max_length + 1)
    shapes: dict[str, dict[int, Any]] = {"token": {0: rows}, "mask": sequence}
    shapes |= {name: {0: rows, 2: sequence[1]} for name in source}
    shapes |= {name: {0: rows, 2: past_tokens} for name in past}
    decoder = Graph(
        "decoder",
        DecoderGraph(model.model).eval(),
        {"token": ids[:, :1], "mask": inputs["mask"], **cache},
        shapes,
        ["logits", *(f"next_{name}" for name in past)],
    )
    return [encoder, decoder]

"""The pure functions of tensors that an exported model is made of: one for a classifier, two for `seq2seq`.

Shapes: B sequences, T their tokens, C classes; S source tokens, P target tokens so far, V target vocabulary, H heads,
E = width / heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim

from txclf.inference.classifier import Classifier
from txclf.inference.seq2seq import Seq2Seq
from txclf.model.seq2seq import Memory, Seq2SeqTransformer


class Graph(NamedTuple):
    """What is exported as one file."""

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    """Examples, by name and in order."""
    shapes: dict[str, dict[int, Any]]
    """Which axes of the inputs may have any size."""
    outputs: list[str]


class ClassifierGraph(nn.Module):
    """`input_ids` (B, T) and `mask` (B, T), and `segments` (B, T) where columns are told apart, to `logits` (B, C) and
    calibrated `probabilities` (B, C)."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.model, self.temperature, self.is_multilabel = (
            classifier.model,
            classifier.temperature,
            classifier.is_multilabel,
        )

    def forward(self, input_ids: Tensor, mask: Tensor, segments: Tensor | None = None) -> tuple[Tensor, Tensor]:
        logits_BC = self.model(input_ids, mask, segments=segments)
        scaled_BC = logits_BC / self.temperature
        return logits_BC, scaled_BC.sigmoid() if self.is_multilabel else scaled_BC.softmax(dim=1)


class EncoderGraph(nn.Module):
    """`input_ids` (B, S) and `mask` (B, S) to what each decoder block keeps of the source: `source_key_0`,
    `source_value_0`, …, each (B, H, S, E)."""

    def __init__(self, model: Seq2SeqTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        memories = self.model.encode(input_ids, mask)
        return tuple(side for memory in memories for side in (memory.source_key, memory.source_value))


class DecoderGraph(nn.Module):
    """One target token for each row: `token` (B, 1), `mask` (B, S) and `kept`, which is what the encoder gave and then
    `key_0`, `value_0`, …, each (B, H, P, E) with P = 0 at first, to `logits` (B, V) of the next token and the keys and
    values (B, H, P + 1, E) to go on with."""

    def __init__(self, model: Seq2SeqTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, token: Tensor, mask: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
        half = len(kept) // 2
        source, seen = kept[:half], kept[half:]
        memories = [Memory(*source[i : i + 2], *seen[i : i + 2]) for i in range(0, half, 2)]
        logits = self.model.decode(token, memories, mask)[:, -1]
        sides = (side for memory in memories for side in (memory.key, memory.value))
        return logits, *(side for side in sides if side is not None)


def graphs(model: Classifier | Seq2Seq) -> Sequence[Graph]:
    """What a bundle's model is exported as."""
    longest = model.description.max_length
    model.model.requires_grad_(False)
    rows, tokens = Dim("rows", min=1, max=65_536), Dim("tokens", min=1, max=longest)
    ids = torch.full((3, min(longest, 5)), 5)
    mask = torch.ones(ids.shape, dtype=torch.bool)
    sequence = {0: rows, 1: tokens}
    if isinstance(model, Classifier):
        names = ["input_ids", "mask"] + (["segments"] if model.description.num_segments else [])
        inputs = dict(zip(names, (ids, mask, torch.zeros_like(ids)), strict=False))
        module = ClassifierGraph(model).eval()
        return [Graph("model", module, inputs, dict.fromkeys(names, sequence), ["logits", "probabilities"])]
    settings = model.description.model
    blocks = range(settings.num_decoder_layers or settings.num_layers)
    source = [f"source_{side}_{block}" for block in blocks for side in ("key", "value")]
    seen = [f"{side}_{block}" for block in blocks for side in ("key", "value")]
    encoder = Graph(
        "encoder",
        EncoderGraph(model.model).eval(),
        {"input_ids": ids, "mask": mask},
        {"input_ids": sequence, "mask": sequence},
        source,
    )
    past = Dim("past", min=0, max=longest + 1)
    head_width = settings.hidden_size // settings.num_heads
    kept = {name: torch.zeros(len(ids), settings.num_heads, ids.shape[1], head_width) for name in source}
    kept |= {name: torch.zeros(len(ids), settings.num_heads, 3, head_width) for name in seen}
    shapes: dict[str, dict[int, Any]] = {"token": {0: rows}, "mask": sequence}
    shapes |= {name: {0: rows, 2: tokens} for name in source} | {name: {0: rows, 2: past} for name in seen}
    decoder = Graph(
        "decoder",
        DecoderGraph(model.model).eval(),
        {"token": ids[:, :1], "mask": mask, **kept},
        shapes,
        ["logits", *(f"next_{name}" for name in seen)],
    )
    return [encoder, decoder]

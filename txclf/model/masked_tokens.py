"""Encoder that predicts masked tokens (BERT, arXiv:1810.04805), to be trained before the labels are learned.

Shapes: B sequences, T tokens, D size of a token vector, M masked tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from txclf.model.classifier import TransformerClassifier

ENCODER = "encoder."
"""Prefix of the encoder's weights."""
CHUNK = 256
"""Logits are computed for so many masked tokens at a time: all of them would take gigabytes."""


class MaskedTokenModel(nn.Module):
    """Predictor of masked tokens: `forward(input_ids, mask, segments)` returns the vectors (M, D) to predict from.

    A masked token is `~id` in `input_ids` (B, T), and the encoder reads the padding token in its place. Every masked
    token is replaced, and none by another token (arXiv:2202.08005, section 5).
    """

    def __init__(self, encoder: TransformerClassifier) -> None:
        super().__init__()
        width = encoder.config.hidden_size
        self.encoder = encoder
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(encoder.embedding.weight.new_zeros(encoder.embedding.num_embeddings))

    def forward(self, input_ids: Tensor, mask: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        hidden_BTD, _ = self.encoder.encode(input_ids.clamp(min=0), mask, segments=segments)
        hidden_BTD = hidden_BTD[:, hidden_BTD.shape[1] - input_ids.shape[1] :]  # without the first vector of `cls`
        vectors_MD: Tensor = self.transform(hidden_BTD[input_ids < 0])
        return vectors_MD

    def loss(self, vectors_MD: Tensor, input_ids: Tensor) -> Tensor:
        """Return the cross-entropy of the masked tokens, summed. The output layer has the token embeddings.

        Training in bf16 computes the logits in bf16 too, and so most of a step; scoring never does.
        """
        embeddings_VD, wanted_M = self.encoder.embedding.weight, ~input_ids[input_ids < 0]
        if not len(wanted_M):
            return vectors_MD.sum() + 0 * self.bias.sum()  # each weight has a gradient on each rank
        device = vectors_MD.device.type
        is_bf16 = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
        dtype = torch.bfloat16 if is_bf16 and torch.is_grad_enabled() else torch.float32
        inputs = [tensor.to(dtype) for tensor in (vectors_MD, embeddings_VD, self.bias)]
        return _linear_cross_entropy(inputs[0], inputs[1], inputs[2], wanted_M).float()


def _linear_cross_entropy(vectors_MD: Tensor, weight_VD: Tensor, bias_V: Tensor, wanted_M: Tensor) -> Tensor:
    """Return the summed cross-entropy of a linear layer, without its logits for all vectors at once."""
    if hasattr(nn, "LinearCrossEntropyOptions"):  # since torch 2.13
        options = nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK)
        return F.linear_cross_entropy(
            vectors_MD, weight_VD, wanted_M, linear_bias=bias_V, reduction="sum", options=options
        )

    def of_chunk(chunk_CD: Tensor, wanted_C: Tensor) -> Tensor:
        with torch.autocast(chunk_CD.device.type, enabled=False):  # the dtype is that of the arguments
            logits_CV = F.linear(chunk_CD, weight_VD, bias_V)
        return F.cross_entropy(logits_CV.float(), wanted_C, reduction="sum")

    chunks = zip(torch.split(vectors_MD, CHUNK), torch.split(wanted_M, CHUNK), strict=True)
    losses: list[Any] = [
        checkpoint(of_chunk, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks
    ]
    return torch.stack(losses).sum()


def encoder_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the encoder among those of a `MaskedTokenModel`, without pooling and head."""
    names = {name: name.removeprefix(ENCODER) for name in weights if name.startswith(ENCODER)}
    return {inner: weights[name] for name, inner in names.items() if inner.split(".")[0] not in ("pooling", "head")}

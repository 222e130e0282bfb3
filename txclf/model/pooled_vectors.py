"""The vector that the head of a pretrained model reads of each row, and the head alone on such vectors.

Heads read the last hidden state of one token, or their mean. So a head gives the same logits for a sequence of one
position that holds this vector. The pooling of an architecture is found by comparing logits.

Shapes: B sequences, T tokens, D size of a vector, C classes.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from txclf.model.pretrained import PretrainedClassifier

Pooling = Literal["first", "mean", "last"]
"""Vector that a head reads: of the first token, the mean of all tokens, or of the last token."""
TOLERANCE = 1e-3
"""Maximum difference of logits that count as equal, as a share of the largest."""


class _States(tuple[Tensor, ...]):
    """Output of an encoder: its last hidden states and, if it has a pooler, what that gives."""

    def __getattr__(self, name: str) -> Tensor | None:
        names = {"last_hidden_state": 0, "pooler_output": 1}
        return self[names[name]] if names.get(name, len(self)) < len(self) else None


def pooled(
    model: PretrainedClassifier, ids: Tensor, mask: Tensor | None, segments: Tensor | None, pooling: Pooling
) -> Tensor:
    """Return the vectors (B, D) of sequences."""
    types = {} if segments is None else {"token_type_ids": segments}
    attention_mask = None if mask is None else mask.long()
    states_BTD: Tensor = model.network.base_model(input_ids=ids, attention_mask=attention_mask, **types)[0].float()
    inside_BT = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    if pooling == "first":
        return states_BTD[:, 0]
    if pooling == "last":
        return states_BTD[torch.arange(len(ids), device=ids.device), inside_BT.sum(dim=1) - 1]
    return (states_BTD * inside_BT[..., None]).sum(dim=1) / inside_BT.sum(dim=1, keepdim=True)


def head_logits(model: PretrainedClassifier, vectors_BD: Tensor) -> Tensor:
    """Return the logits (B, C) of the head for vectors, as the network gives them for the sequences."""
    base: Any = model.network.base_model
    states_B1D = vectors_BD[:, None]
    pooler = getattr(base, "pooler", None)  # which belongs to the head
    output = _States((states_B1D,) if pooler is None else (states_B1D, pooler(states_B1D)))
    ids_B1 = torch.full((len(vectors_BD), 1), int(model.network.config.pad_token_id == 0), device=vectors_BD.device)
    base.forward = lambda *arguments, **options: output
    try:
        logits: Tensor = model.network(input_ids=ids_B1, attention_mask=torch.ones_like(ids_B1)).logits
    finally:
        del base.forward
    return logits.float()


def pooling_of(
    model: PretrainedClassifier, ids: Tensor, mask: Tensor | None, segments: Tensor | None
) -> Pooling | None:
    """Return the pooling with which the head gives the logits of the network for these sequences, or None."""
    expected_BC = model(ids, mask, segments=segments)
    for pooling in get_args(Pooling):
        try:
            found_BC = head_logits(model, pooled(model, ids, mask, segments, pooling))
        except (RuntimeError, TypeError, ValueError, IndexError):  # an architecture of another kind
            return None
        if found_BC.shape != expected_BC.shape:
            return None
        if (found_BC - expected_BC).abs().max() <= TOLERANCE * expected_BC.abs().max():
            return pooling  # type: ignore[no-any-return]
    return None

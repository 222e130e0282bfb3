"""Attention of pretrained networks: that of `attention`, in the registry of Transformers.

Shapes: B rows, T tokens, H heads, E values of a head.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn

from txclf.model.attention import attend

NAME = "txclf"
"""Name of the attention in the registry."""


def option(config: Any) -> dict[str, str]:
    """Return the option of a new network that selects this attention, unless its architecture has one of its own."""
    from transformers import AutoModelForSequenceClassification
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    architecture: Any = AutoModelForSequenceClassification._model_mapping[type(config)]
    # Falcon looks its attention up in a list of its own.
    has_list = any(name.endswith("_ATTENTION_CLASSES") for name in vars(sys.modules[architecture.__module__]))
    return {"attn_implementation": NAME} if getattr(architecture, "_supports_sdpa", False) and not has_list else {}


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return the attention output (B, T, H, E) of an encoder by `attend`; that of other models by SDPA."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    is_plain = query.shape[1] == key.shape[1] and scaling in (None, query.shape[-1] ** -0.5)
    if causal or not is_plain:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **options
        )
        return output, None
    mask = attention_mask
    if mask is not None and mask.stride(2) == 0:  # the same for all queries
        mask = mask[:, :, :1]
    return attend(query, key, value, mask, dropout=dropout).transpose(1, 2).contiguous(), None

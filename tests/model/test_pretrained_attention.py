"""The attention of pretrained networks: which architectures have it. Their logits are in test_pretrained.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig

from tests.helpers.encoders import SIZES
from txclf.config.sections import Model
from txclf.model import pretrained_attention
from txclf.model.pretrained import PretrainedClassifier


@pytest.mark.parametrize(("architecture", "is_used"), [("bert", True), ("llama", True), ("falcon", False)])
def test_option_selects_the_attention_unless_the_architecture_has_one_of_its_own(
    architecture: str, is_used: bool
) -> None:
    config: Any = AutoConfig.for_model(architecture, **SIZES, num_labels=3, pad_token_id=0)
    assert pretrained_attention.option(config) == ({"attn_implementation": "txclf"} if is_used else {})
    model = PretrainedClassifier(config, Model(pretrained="folder")).eval()
    logits = model(torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.bool))
    assert logits.isfinite().all()

"""The masked-token model predicts from what surrounds a masked token, by the token embeddings."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from txclf.config.sections import Model
from txclf.model import masked_tokens
from txclf.model.classifier import TransformerClassifier
from txclf.model.masked_tokens import MaskedTokenModel, encoder_weights

SIZES = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32, "dropout": 0.0}
VOCABULARY = 50


def make(**settings: object) -> MaskedTokenModel:
    torch.manual_seed(0)
    config = Model.model_validate({**SIZES, **settings})
    return MaskedTokenModel(TransformerClassifier(config, VOCABULARY, 2, 12))


@pytest.mark.parametrize("is_old_torch", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_loss_is_the_cross_entropy_of_the_tied_output_layer(
    pooling: str, is_old_torch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_old_torch:  # than 2.13
        monkeypatch.delattr(nn, "LinearCrossEntropyOptions")
        monkeypatch.setattr(masked_tokens, "CHUNK", 2)
    model = make(pooling=pooling)
    tokens_BT = torch.randint(1, VOCABULARY, (3, 9))
    masked_BT = torch.zeros(3, 9, dtype=torch.bool)
    masked_BT[0, 2] = masked_BT[0, 5] = masked_BT[2, 8] = True
    ids_BT = torch.where(masked_BT, ~tokens_BT, tokens_BT)
    vectors_MD = model(ids_BT)
    logits_MV = vectors_MD @ model.encoder.embedding.weight.T + model.bias
    expected = F.cross_entropy(logits_MV, tokens_BT[masked_BT], reduction="sum")
    found = model.loss(vectors_MD, ids_BT)
    torch.testing.assert_close(found, expected)
    weights = list(model.parameters())
    found_slopes = torch.autograd.grad(found, weights, retain_graph=True, allow_unused=True)
    slopes = torch.autograd.grad(expected, weights, allow_unused=True)
    for one, other in zip(found_slopes, slopes, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("is_old_torch", [False, True])
def test_training_in_bf16_has_nearly_the_gradient_of_fp32_and_scoring_its_loss(
    is_old_torch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_old_torch:
        monkeypatch.delattr(nn, "LinearCrossEntropyOptions")
    model = make(hidden_size=64, intermediate_size=64)
    ids_BT = torch.randint(1, VOCABULARY, (40, 12))
    ids_BT[:, ::3] = ~ids_BT[:, ::3]
    gradients, losses = [], []
    for is_mixed in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            vectors_MD = model(ids_BT).float()
            model.loss(vectors_MD, ids_BT).backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                losses.append(model.loss(vectors_MD.detach(), ids_BT))
        found = [parameter.grad for parameter in model.encoder.blocks.parameters()]
        gradients.append(torch.cat([gradient.flatten() for gradient in found if gradient is not None]))
    assert (gradients[1] - gradients[0]).norm() < 0.03 * gradients[0].norm()
    torch.testing.assert_close(losses[1], losses[0], rtol=2e-3, atol=0)


def test_vectors_depend_on_the_place_of_a_masked_token_and_not_on_its_id() -> None:
    model = make()
    ids_BT = torch.tensor([[4, ~7, 9, 11], [4, ~8, 9, 11], [4, ~7, 9, 12]])
    vectors_MD = model(ids_BT)
    torch.testing.assert_close(vectors_MD[0], vectors_MD[1])
    assert not torch.allclose(vectors_MD[0], vectors_MD[2])
    padded_BT = F.pad(ids_BT, (0, 3))
    mask_BT = F.pad(torch.ones_like(ids_BT), (0, 3)).bool()
    torch.testing.assert_close(model(padded_BT, mask_BT), vectors_MD)


def test_without_masked_tokens_the_loss_is_zero_and_each_weight_has_a_gradient() -> None:
    model = make()
    for part in (model.encoder.pooling, model.encoder.head):
        part.requires_grad_(False)
    ids_BT = torch.tensor([[4, 7, 9, 11]])
    loss = model.loss(model(ids_BT), ids_BT)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_encoder_weights_are_those_of_a_classifier_without_pooling_and_head() -> None:
    model = make(pooling="attention")
    found = encoder_weights(model.state_dict())
    names = set(model.encoder.state_dict())
    assert set(found) == {name for name in names if not name.startswith(("pooling.", "head."))}
    torch.testing.assert_close(found["embedding.weight"], model.encoder.embedding.weight.detach())

"""The head of a pretrained model gives the same logits for pooled vectors as for the sequences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.encoders import ALL, DECODERS, write_encoder
from txclf.config.sections import Model
from txclf.model.pooled_vectors import head_logits, pooled, pooling_of
from txclf.model.pretrained import PretrainedClassifier, read_config

IDS = torch.randint(5, 300, (6, 9), generator=torch.Generator().manual_seed(0))
MASK = torch.arange(9) < torch.tensor([9, 4, 7, 1, 9, 2])[:, None]


def classifier(folder: Path, architecture: str, **settings: Any) -> PretrainedClassifier:
    path = write_encoder(folder / architecture, architecture, **settings)
    pad = 1 if architecture in ("roberta", "xlm-roberta", "mpnet") else 0
    config = read_config(path, Model(), labels=["a", "b", "c"], is_multilabel=False, pad=pad)
    return PretrainedClassifier.load(path, config, Model(pretrained=path, freeze="encoder")).eval()


@pytest.mark.parametrize(
    ("architecture", "settings", "expected"),
    [
        *((name, {}, "first") for name in ALL if name not in ("modernbert", "albert", *DECODERS)),
        ("modernbert", {"classifier_pooling": "cls"}, "first"),
        ("modernbert", {"classifier_pooling": "mean"}, "mean"),
        *((name, {}, "last") for name in DECODERS),
    ],
)
def test_head_logits_of_pooled_vectors_are_those_of_the_network(
    tmp_path: Path, architecture: str, settings: dict[str, Any], expected: str
) -> None:
    model = classifier(tmp_path, architecture, **settings)
    ids = torch.where(MASK, IDS, model.network.config.pad_token_id)
    with torch.no_grad():
        pooling = pooling_of(model, ids, MASK, None)
        assert pooling == expected
        vectors = pooled(model, ids, MASK, None, pooling)
        logits = head_logits(model, vectors)
        torch.testing.assert_close(logits, model(ids, MASK), atol=1e-5, rtol=1e-4)
        assert logits.std(dim=0).min() > 1e-3
    torch.testing.assert_close(model(ids, MASK), logits, atol=1e-5, rtol=1e-4)  # the network is whole again


def test_head_logits_have_the_gradient_of_the_head(tmp_path: Path) -> None:
    model = classifier(tmp_path, "bert")
    ids = torch.where(MASK, IDS, 0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained
    with torch.no_grad():
        vectors = pooled(model, ids, MASK, None, "first")
    one, two = head_logits(model, vectors).square().sum(), model(ids, MASK).square().sum()
    for a, b in zip(torch.autograd.grad(one, trained), torch.autograd.grad(two, trained), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_pooling_of_an_architecture_with_another_head_is_none(tmp_path: Path) -> None:
    model = classifier(tmp_path, "albert")
    with torch.no_grad():
        assert pooling_of(model, torch.where(MASK, IDS, 0), MASK, None) is None

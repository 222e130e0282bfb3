"""The classifier: effects of padding, other rows, order, dropout and the seed."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from txclf.config.sections import Model
from txclf.model.classifier import TransformerClassifier

POOLINGS = ["mean", "max", "mean_max", "cls", "attention"]
POSITIONS = ["rotary", "sinusoidal", "learned", "none"]
VARIANTS = list(product(POOLINGS, POSITIONS, ["pre", "post"]))
every_variant = pytest.mark.parametrize(("pooling", "positions", "norm"), VARIANTS)


def make(pooling: str = "mean", positions: str = "rotary", norm: str = "pre", **settings: Any) -> TransformerClassifier:
    torch.manual_seed(0)
    config = Model.model_validate(
        {"num_layers": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 24, "dropout": 0.0}
        | {"pooling": pooling, "position_encoding": positions, "norm": norm, **settings}
    )
    return TransformerClassifier(config, vocab_size=50, num_classes=3, max_length=12)


def make_rows(*lengths: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 50, (length,), generator=generator) for length in lengths]


def padded(rows: list[Tensor], width: int, fill: int = 0) -> tuple[Tensor, Tensor]:
    ids = torch.full((len(rows), width), fill)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
        mask[number, : len(row)] = True
    return ids, mask


def alone(model: TransformerClassifier, rows: list[Tensor]) -> Tensor:
    """Return the logits of each row by itself, without padding and mask."""
    with torch.no_grad():
        return torch.cat([model(row[None]) for row in rows])


@every_variant
@pytest.mark.parametrize("training", [False, True])
def test_forward_padding_and_other_rows_change_no_logit(
    pooling: str, positions: str, norm: str, training: bool
) -> None:
    model = make(pooling, positions, norm).train(training)
    rows = make_rows(5, 1, 9, 12, 2)
    expected = alone(model, rows)
    assert (expected[0] - expected[2]).abs().max() > 1e-3
    with torch.no_grad():
        for fill in (0, 7, 49):
            together = model(*padded(rows, 12, fill))
            assert (together - expected).abs().max() < 1e-5
        assert (model(*padded(rows[:2], 8, 3)) - expected[:2]).abs().max() < 1e-5


@every_variant
def test_forward_no_mask_equals_full_mask(pooling: str, positions: str, norm: str) -> None:
    model = make(pooling, positions, norm).eval()
    ids = torch.stack(make_rows(6, 6, 6))
    with torch.no_grad():
        assert (model(ids) - model(ids, torch.ones(3, 6, dtype=torch.bool))).abs().max() < 1e-5


@every_variant
def test_forward_token_order_counts_with_positions(pooling: str, positions: str, norm: str) -> None:
    model = make(pooling, positions, norm).eval()
    (row,) = make_rows(9)
    order = torch.tensor([4, 0, 8, 2, 1, 7, 6, 3, 5])
    one, two = alone(model, [row, row[order]])
    assert ((one - two).abs().max() < 1e-5) == (positions == "none")


@every_variant
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_backward_gradient_reaches_every_parameter(pooling: str, positions: str, norm: str, activation: str) -> None:
    model = make(pooling, positions, norm, classifier_hidden_size=8, activation=activation)
    logits = model(*padded(make_rows(5, 1, 9, 12), 12))
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0]))
    names = [name for name, _ in model.named_parameters()]
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)
    largest = {name: gradient.abs().max().item() for name, gradient in zip(names, gradients, strict=True)}
    # A softmax over tokens does not see what is added to every score.
    assert {name for name, value in largest.items() if value < 1e-7} <= {"pooling.score.bias"}


@pytest.mark.parametrize("head_width", [0, 8])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_forward_shapes_and_types(pooling: str, head_width: int) -> None:
    model = make(pooling, classifier_hidden_size=head_width)
    for rows, tokens in [(1, 1), (3, 12), (4, 5)]:
        logits = model(torch.zeros(rows, tokens, dtype=torch.int64))
        assert logits.shape == (rows, 3)
        assert logits.dtype == torch.float32
    assert model.bfloat16()(torch.zeros(1, 2, dtype=torch.int64)).dtype == torch.float32


@pytest.mark.parametrize("name", ["dropout", "attention_dropout", "embedding_dropout"])
def test_forward_dropout_only_in_training(name: str) -> None:
    settings: dict[str, Any] = {name: 0.4}
    model = make(**settings)
    ids, mask = padded(make_rows(5, 9, 12), 12)
    with torch.no_grad():
        assert not torch.equal(model(ids, mask), model(ids, mask))
        torch.manual_seed(3)
        first = model(ids, mask)
        torch.manual_seed(3)
        assert torch.equal(model(ids, mask), first)
        model.eval()
        assert torch.equal(model(ids, mask), model(ids, mask))
        assert torch.equal(model(ids, mask), make().eval()(ids, mask))


def test_embedding_dropout_defaults_to_dropout() -> None:
    assert make(dropout=0.25).embedding_dropout.rate == 0.25
    assert make(dropout=0.25, embedding_dropout=0.0).embedding_dropout.rate == 0.0


def test_embedding_has_unit_variance() -> None:
    model = make(hidden_size=256, num_heads=8)
    embedded = model.embedding(torch.arange(50)) * 256**0.5
    assert embedded.var().item() == pytest.approx(1.0, abs=0.05)


ENCODER = 6 * (4 * (256 * 256 + 256) + 2 * 256 * 1024 + 1024 + 256 + 4 * 256)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ENCODER + 512 + 131_584 + 513 * 6),
        ({"norm": "post"}, ENCODER + 131_584 + 513 * 6),
        ({"pooling": "cls"}, ENCODER + 512 + 256 + 131_584 + 513 * 6),
        ({"pooling": "attention"}, ENCODER + 512 + 256 + 131_584 + 513 * 6),
        ({"pooling": "mean_max"}, ENCODER + 512 + 256 * 512 + 131_584 + 513 * 6),
        ({"position_encoding": "learned"}, ENCODER + 512 + 128 * 256 + 131_584 + 513 * 6),
        ({"classifier_hidden_size": 0}, ENCODER + 512 + 257 * 6),
    ],
)
def test_parameters_have_the_expected_number(settings: dict[str, Any], expected: int) -> None:
    config = Model(
        num_layers=6, hidden_size=256, num_heads=8, intermediate_size=1024, classifier_hidden_size=512
    ).model_copy(update=settings)
    with torch.device("meta"):
        model = TransformerClassifier(config, vocab_size=10_000, num_classes=6, max_length=128)
    assert sum(weight.numel() for weight in model.parameters()) == 10_000 * 256 + expected
    assert ENCODER == 4_738_560


@pytest.mark.parametrize("positions", POSITIONS)
def test_state_dict_holds_only_parameters(positions: str) -> None:
    model, other = make(position_encoding=positions), make(position_encoding=positions)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(1.0)
    (row,) = make_rows(7)
    other.load_state_dict(model.state_dict())
    assert torch.equal(alone(model.eval(), [row]), alone(other.eval(), [row]))


def test_initialization_is_repeatable_with_a_seed() -> None:
    for pooling, positions in product(POOLINGS, POSITIONS):
        one, two = make(pooling, positions), make(pooling, positions)
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
        assert all(weight.isfinite().all() for weight in one.parameters())

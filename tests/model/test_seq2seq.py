"""The encoder-decoder: causal, blind to padding, the same with its cache; beam search against all outputs there are."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from txclf.config.sections import Model
from txclf.model.beam_search import generate
from txclf.model.seq2seq import Seq2SeqTransformer

BEGIN, END, VOCABULARY = 1, 2, 7
VARIANTS: list[dict[str, Any]] = [
    {},
    {"norm": "post", "position_encoding": "sinusoidal"},
    {"position_encoding": "learned", "tie_embeddings": False, "num_decoder_layers": 1},
    {"position_encoding": "none"},
]


def make(shared: bool = True, **settings: Any) -> Seq2SeqTransformer:
    torch.manual_seed(3)
    config = Model(num_layers=2, hidden_size=16, num_heads=2, intermediate_size=32, **settings)
    return Seq2SeqTransformer(config, VOCABULARY, VOCABULARY, 12, shared).eval()


def sources(rows: int, tokens: int) -> Tensor:
    return torch.randint(3, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(rows))


@pytest.mark.parametrize("settings", VARIANTS)
@pytest.mark.parametrize("shared", [True, False])
def test_a_token_changes_nothing_before_it(settings: dict[str, Any], shared: bool) -> None:
    model, source, target = make(shared, **settings), sources(3, 5), sources(3, 6)
    logits = model(source, None, target)
    changed = target.clone()
    changed[:, 3] = (changed[:, 3] + 1) % VOCABULARY
    other = model(source, None, changed)
    assert torch.equal(logits[:, :3], other[:, :3])
    assert not torch.allclose(logits[:, 3:], other[:, 3:])


@pytest.mark.parametrize("settings", VARIANTS)
def test_padding_changes_no_logit(settings: dict[str, Any]) -> None:
    model, source, target = make(**settings), sources(2, 5), sources(2, 6)
    logits = model(source, None, target)
    padded = torch.cat([source, torch.full((2, 3), 6)], dim=1)
    mask = torch.arange(8).expand(2, 8) < 5
    longer = torch.cat([target, torch.full((2, 2), 5)], dim=1)
    assert torch.allclose(logits, model(padded, mask, longer)[:, :6], atol=1e-5)


@pytest.mark.parametrize("settings", VARIANTS)
def test_token_by_token_is_as_all_at_once(settings: dict[str, Any]) -> None:
    model, source, target = make(**settings), sources(3, 5), sources(3, 6)
    memories = model.encode(source, None)
    steps = [model.decode(target[:, i : i + 1], memories, None) for i in range(6)]
    assert torch.allclose(torch.cat(steps, dim=1), model(source, None, target), atol=1e-5)


def test_the_source_matters() -> None:
    model, target = make(), sources(2, 4)
    assert not torch.allclose(model(sources(2, 5), None, target), model(sources(2, 5) % 4 + 3, None, target))


def test_a_shared_vocabulary_has_one_matrix() -> None:
    names = dict(make(shared=True).named_parameters())
    assert "target_embedding.weight" not in names
    assert "output.weight" not in names
    assert "output.weight" in dict(make(shared=False, tie_embeddings=False).named_parameters())


def score(model: Seq2SeqTransformer, source: Tensor, output: list[int], penalty: float) -> float:
    """Of an output with its end, as `generate` ranks it."""
    target = torch.tensor([[BEGIN, *output]])
    with torch.no_grad():
        ranked = model(source, None, target)[0]
    chosen = ranked.log_softmax(dim=-1)[torch.arange(len(output) + 1), torch.tensor([*output, END])]
    value: float = float(chosen.sum()) / ((5 + len(output) + 1) / 6) ** penalty
    return value


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_wide_beams_find_the_best_of_all_outputs(penalty: float) -> None:
    model = make()
    tokens = [token for token in range(VOCABULARY) if token not in (BEGIN, END)]
    for row in range(4):
        source = sources(8, 5)[row : row + 1]
        outputs = [list(one) for length in range(4) for one in itertools.product(tokens, repeat=length)]
        best = max(outputs, key=lambda output: score(model, source, output, penalty))
        with torch.no_grad():
            (found,) = generate(model, source, None, (BEGIN, END), num_beams=200, max_length=3, length_penalty=penalty)
        assert score(model, source, found, penalty) == pytest.approx(score(model, source, best, penalty), abs=1e-4)


@pytest.mark.parametrize("beams", [1, 2, 4])
def test_an_output_does_not_depend_on_its_neighbours(beams: int) -> None:
    model = make()
    batch, mask = torch.zeros(6, 7, dtype=torch.long), torch.zeros(6, 7, dtype=torch.bool)
    singles = []
    for row in range(6):
        source = sources(9, 2 + row)[row : row + 1]
        batch[row, : 2 + row], mask[row, : 2 + row] = source[0], True
        singles += generate(model, source, None, (BEGIN, END), num_beams=beams, max_length=8, length_penalty=0.6)
    assert generate(model, batch, mask, (BEGIN, END), num_beams=beams, max_length=8, length_penalty=0.6) == singles
    assert all(END not in output and BEGIN not in output and len(output) <= 8 for output in singles)


def test_one_beam_takes_the_likeliest_token() -> None:
    model, source = make(), sources(5, 4)
    for row, output in enumerate(
        generate(model, source, None, (BEGIN, END), num_beams=1, max_length=8, length_penalty=0.6)
    ):
        for place in range(len(output) + (len(output) < 8)):
            logits = model(source[row : row + 1], None, torch.tensor([[BEGIN, *output[:place]]]))[0, -1]
            logits[BEGIN] = float("-inf")
            assert int(logits.argmax()) == [*output, END][place]

"""Beam search, checked against all possible outputs of a small model."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from tests.helpers.seq2seq_models import BEGIN, END, VOCABULARY, make_seq2seq, sources
from txclf.model.beam_search import generate
from txclf.model.seq2seq import Seq2SeqTransformer


def score(model: Seq2SeqTransformer, source: Tensor, output: list[int], penalty: float) -> float:
    """Return the score by which `generate` ranks an output, `[EOS]` included."""
    target = torch.tensor([[BEGIN, *output]])
    with torch.no_grad():
        ranked = model(source, None, target)[0]
    chosen = ranked.log_softmax(dim=-1)[torch.arange(len(output) + 1), torch.tensor([*output, END])]
    value: float = float(chosen.sum()) / ((5 + len(output) + 1) / 6) ** penalty
    return value


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_generate_wide_beam_finds_best_of_all_outputs(penalty: float) -> None:
    model = make_seq2seq()
    tokens = [token for token in range(VOCABULARY) if token not in (BEGIN, END)]
    for row in range(4):
        source = sources(8, 5)[row : row + 1]
        outputs = [list(tokens_) for length in range(4) for tokens_ in itertools.product(tokens, repeat=length)]
        best = max(outputs, key=lambda output: score(model, source, output, penalty))
        with torch.no_grad():
            (output,) = generate(model, source, None, (BEGIN, END), num_beams=200, max_length=3, length_penalty=penalty)
        assert score(model, source, output, penalty) == pytest.approx(score(model, source, best, penalty), abs=1e-4)


@pytest.mark.parametrize("beams", [1, 2, 4])
def test_generate_batch_equals_single_rows(beams: int) -> None:
    model = make_seq2seq()
    batch, mask = torch.zeros(6, 7, dtype=torch.long), torch.zeros(6, 7, dtype=torch.bool)
    singles = []
    for row in range(6):
        source = sources(9, 2 + row)[row : row + 1]
        batch[row, : 2 + row], mask[row, : 2 + row] = source[0], True
        singles += generate(model, source, None, (BEGIN, END), num_beams=beams, max_length=8, length_penalty=0.6)
    assert generate(model, batch, mask, (BEGIN, END), num_beams=beams, max_length=8, length_penalty=0.6) == singles
    assert all(END not in output and BEGIN not in output and len(output) <= 8 for output in singles)


def test_generate_one_beam_is_greedy() -> None:
    model, source = make_seq2seq(), sources(5, 4)
    for row, output in enumerate(
        generate(model, source, None, (BEGIN, END), num_beams=1, max_length=8, length_penalty=0.6)
    ):
        for position in range(len(output) + (len(output) < 8)):
            logits = model(source[row : row + 1], None, torch.tensor([[BEGIN, *output[:position]]]))[0, -1]
            logits[BEGIN] = float("-inf")
            assert int(logits.argmax()) == [*output, END][position]


def test_generate_row_that_ends_at_once_leaves_the_others_their_source() -> None:
    model = make_seq2seq(shared=False, tie_embeddings=False)
    assert model.output is not None
    batch = sources(40, 5)
    with torch.no_grad():  # so that many rows end with their first token, and others do not
        model.output.weight *= 4
        model.output.bias[END] = 5.0
    ended, others, outputs = list[int](), list[int](), list[list[int]]()
    for row in range(len(batch)):
        outputs += generate(
            model, batch[row : row + 1], None, (BEGIN, END), num_beams=2, max_length=8, length_penalty=0.6
        )
        (others if outputs[row] else ended).append(row)
    assert ended
    assert others
    for pair in itertools.product(ended[:6], others[:6]):
        for rows in (pair, pair[::-1]):
            found = generate(
                model, batch[list(rows)], None, (BEGIN, END), num_beams=2, max_length=8, length_penalty=0.6
            )
            assert found == [outputs[row] for row in rows]

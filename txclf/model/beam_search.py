"""Batched beam search for a `Seq2SeqTransformer`. Keys and values are cached, so each target token is computed once.

Shapes: B rows, K beams, S source tokens, V target vocabulary, T tokens of the output so far.
"""

from __future__ import annotations

import torch
from torch import Tensor

from txclf.model.seq2seq import Seq2SeqTransformer


@torch.inference_mode()
def generate(
    model: Seq2SeqTransformer,
    input_ids: Tensor,
    mask: Tensor | None,
    ends: tuple[int, int],
    *,
    num_beams: int,
    max_length: int,
    length_penalty: float,
) -> list[list[int]]:
    """Return the best output of each source (B, S), without `[BOS]` and `[EOS]`.

    `mask` (B, S) is True at real tokens. `ends` are the ids of `[BOS]` and `[EOS]`. `max_length` is the maximum number
    of tokens of an output. Hypotheses are ranked by log probability / ((5 + length) / 6) ** length_penalty
    (arXiv:1609.08144, eq. 14); the length counts `[EOS]`. A row is done if no open hypothesis can beat its best
    finished one. `num_beams=1` is greedy decoding.

    Raises `FloatingPointError` if the logits are not finite.
    """
    begin, end = ends
    rows = len(input_ids)
    memories = model.encode(input_ids, mask)
    device = input_ids.device
    live = torch.arange(rows, device=device)  # numbers of the rows that are not done
    width = 1
    outputs = torch.full((rows, 1, 1), begin, device=device)  # (B, K, T)
    scores = torch.zeros(rows, 1, device=device)  # (B, K), log probabilities
    best = torch.full((rows,), float("-inf"), device=device)
    results: list[list[int]] = [[] for _ in range(rows)]
    for length in range(1, max_length + 2):
        logits = model.decode(outputs[:, :, -1].reshape(-1, 1), memories, mask)[:, -1]
        ranked = logits.log_softmax(dim=-1).view(len(live), width, -1)
        ranked[:, :, begin] = float("-inf")
        if length > max_length:  # only `[EOS]` may follow
            ranked[:, :, :end] = ranked[:, :, end + 1 :] = float("-inf")
        vocabulary = ranked.shape[2]
        total = (scores[:, :, None] + ranked).view(len(live), -1)
        # Among twice as many candidates, at least `num_beams` do not end here.
        top, indices = total.topk(min(2 * num_beams, total.shape[1]), dim=1)
        beam, token = indices // vocabulary, indices % vocabulary
        over = token == end
        norm = ((5 + length) / 6) ** length_penalty
        # Hypotheses that end among the first `num_beams` are finished. The best of a row comes first.
        finished = torch.where(over, top, float("-inf"))[:, :num_beams] / norm
        value, which = finished.max(dim=1)
        better = (value > best[live]).nonzero()[:, 0]
        for row in better.tolist():
            kept = outputs[row, beam[row, which[row]], 1:]
            results[int(live[row])] = kept.tolist()
        best[live[better]] = value[better]
        top = torch.where(over, float("-inf"), top)
        scores, order = top.topk(min(num_beams, top.shape[1]), dim=1)
        beam, token = beam.gather(1, order), token.gather(1, order)
        # An open hypothesis only loses probability. At best it gets the length penalty of the longest output.
        bound = scores[:, 0] / ((6 + max_length) / 6) ** length_penalty
        open_rows = (bound > best[live]).nonzero()[:, 0] if num_beams > 1 else (~over[:, 0]).nonzero()[:, 0]
        if not len(open_rows) or length > max_length:
            break
        source = (open_rows[:, None] * width + beam[open_rows]).flatten()
        outputs = torch.cat(
            [outputs.flatten(0, 1)[source].view(len(open_rows), scores.shape[1], -1), token[open_rows][:, :, None]], 2
        )
        # The hypotheses of a row have the same source.
        same_sources = len(open_rows) == len(live) and scores.shape[1] == width
        for memory in memories:
            memory.select(source, same_sources=same_sources)
        if mask is not None and not same_sources:
            mask = mask[source]
        width, live, scores = scores.shape[1], live[open_rows], scores[open_rows]
    if not best.isfinite().all():  # every row has a finished hypothesis
        raise FloatingPointError("the logits are not finite")
    return results

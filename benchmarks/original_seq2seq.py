"""Train the sequence-to-sequence model that txclf grew out of, as it was written, and with its faults fixed one by one.

    .venv/bin/python benchmarks/original_seq2seq.py jobs/seed_seq2seq.yaml data.train=FILE data.test=FILE

`nn.Transformer` trained by teacher forcing. Its faults: no causal mask, so the token to predict is visible; no padding
mask; positions added along the wrong axis, so that each row of a batch has its own and a token's position is unknown.
The run file gives the shape, the rows, the vocabularies and the number of epochs. For each variant the script prints
the token accuracy by teacher forcing and the exact match of greedy outputs on the test rows. Figures:
docs/benchmarks.md.
"""

from __future__ import annotations

import json
import math
import sys
import time

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.data import shards
from txclf.data.batches import PairRows
from txclf.data.prepare import prepare
from txclf.data.tokenizer import parse_tokenizer, target_ends
from txclf.model.layers import sinusoids

VARIANTS = {
    "as written": (False, False, 0),
    "with a causal mask": (True, False, 0),
    "and right positions": (True, False, 1),
    "and padding masks": (True, True, 1),
}
"""Causal mask, padding masks, axis of the positions."""


class OriginalSeq2Seq(nn.Module):
    """Source (B, S) and target (B, T) ids to logits (B, T, V); a mask is True where a token is real."""

    def __init__(self, run: RunConfig, sizes: tuple[int, int], causal: bool, padding: bool, axis: int) -> None:
        super().__init__()
        model = run.model
        self.causal, self.padding, self.axis = causal, padding, axis
        self.source, self.target = (nn.Embedding(size, model.hidden_size) for size in sizes)
        self.register_buffer("positions", sinusoids(4096, model.hidden_size), persistent=False)
        self.transformer = nn.Transformer(
            model.hidden_size,
            model.num_heads,
            model.num_layers,
            model.num_decoder_layers or model.num_layers,
            model.intermediate_size,
            model.dropout,
            batch_first=True,
        )
        self.output = nn.Linear(model.hidden_size, sizes[1])

    def forward(self, source: Tensor, target: Tensor, source_mask: Tensor, target_mask: Tensor) -> Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1]) if self.causal else None
        hidden = self.transformer(
            self.placed(self.source(source)),
            self.placed(self.target(target)),
            tgt_mask=None if causal is None else causal < 0,
            src_key_padding_mask=~source_mask if self.padding else None,
            memory_key_padding_mask=~source_mask if self.padding else None,
            tgt_key_padding_mask=~target_mask if self.padding else None,
        )
        logits: Tensor = self.output(hidden)
        return logits

    def placed(self, embedded: Tensor) -> Tensor:
        """With positions along the tokens (axis 1), or along the rows of the batch (axis 0), as it was written."""
        positions: Tensor = self.positions[: embedded.shape[self.axis]]  # type: ignore[index]
        return embedded * math.sqrt(embedded.shape[-1]) + positions.unsqueeze(1 - self.axis)


def real(ids: Tensor, lengths: Tensor) -> Tensor:
    return torch.arange(ids.shape[1]) < lengths[:, None]


def train(run: RunConfig, model: OriginalSeq2Seq, rows: PairRows) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.train.learning_rate)
    draw = np.random.default_rng(run.seed)
    size = run.train.batch_size
    steps = run.train.epochs * (len(rows) // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, run.train.learning_rate, steps, pct_start=0.1)
    model.train()
    for _ in range(run.train.epochs):
        order = draw.permutation(len(rows))
        for start in range(0, len(rows) - size + 1, size):
            batch = rows.batch(order[start : start + size])
            source, target = batch["input_ids"], batch["target_ids"]
            source_mask = torch.ones_like(source, dtype=torch.bool) if batch["mask"] is None else batch["mask"]
            inside = real(target, batch["target_lengths"])
            logits = model(source, target[:, :-1], source_mask, inside[:, :-1])
            wanted = target[:, 1:].masked_fill(~inside[:, 1:], -100)
            loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-100)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), run.train.max_grad_norm)
            optimizer.step()
            schedule.step()


@torch.inference_mode()
def score(model: OriginalSeq2Seq, rows: PairRows, ends: tuple[int, int], longest: int) -> dict[str, float]:
    """Token accuracy by teacher forcing, and exact match of greedy outputs; every row once."""
    model.eval()
    right = tokens = exact = 0
    for start in range(0, len(rows), 256):
        batch = rows.batch(np.arange(start, min(start + 256, len(rows))))
        source, target = batch["input_ids"], batch["target_ids"]
        source_mask = torch.ones_like(source, dtype=torch.bool) if batch["mask"] is None else batch["mask"]
        inside = real(target, batch["target_lengths"])
        found = model(source, target[:, :-1], source_mask, inside[:, :-1]).argmax(dim=-1)
        right += int(((found == target[:, 1:]) & inside[:, 1:]).sum())
        tokens += int(inside[:, 1:].sum())
        output = torch.full((len(source), 1), ends[0])
        while output.shape[1] < longest + 2 and not (output == ends[1]).any(dim=1).all():
            logits = model(source, output, source_mask, torch.ones_like(output, dtype=torch.bool))
            output = torch.cat([output, logits[:, -1:].argmax(dim=-1)], dim=1)
        for row, length in enumerate(batch["target_lengths"].tolist()):
            exact += output[row, :length].tolist() == target[row, :length].tolist()
    return {"token_accuracy": round(right / tokens, 4), "exact_match": round(exact / len(rows), 4)}


def main() -> None:
    torch.set_num_threads(1)
    run = run_config.load(sys.argv[1], sys.argv[2:])
    folder = prepare(run)
    manifest = shards.load_manifest(folder)
    rows = {
        split: PairRows.from_tables([shards.read_split(folder, manifest, split, ["input_ids", "target_ids"])])
        for split in ("train", "test")
    }
    ends = target_ends(parse_tokenizer(shards.tokenizers(folder)[-1]))
    for name, (causal, padding, axis) in VARIANTS.items():
        torch.manual_seed(run.seed)
        start = time.monotonic()
        model = OriginalSeq2Seq(run, (manifest.vocab_size, manifest.target_vocab_size), causal, padding, axis)
        train(run, model, rows["train"])
        minutes = round((time.monotonic() - start) / 60, 1)
        scores = score(model, rows["test"], ends, run.tokenizer.max_length)
        print(json.dumps({"variant": name, **scores, "minutes": minutes}), flush=True)


if __name__ == "__main__":
    main()

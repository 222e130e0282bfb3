"""Measure what each fix of the article's classifier gains on IMDB, one fault at a time, in plain PyTorch.

    OMP_NUM_THREADS=1 python benchmarks/article_ablation.py --train train.parquet --test test.parquet --out rows.jsonl
    ... --only "as written" --epochs 1 --rows 2000        a short version, in a minute

The classifier (width 50, 5 heads, feed-forward 50, 6 post-norm layers, ReLU, sinusoidal positions, dropout 0, batches
of 30 rows of about one length, Adam, clip 0.5) is first trained as it was written. Then its faults are fixed; each rung
keeps the fixes above it:

    as written      gradients are never zeroed; (batch, tokens, width) goes into an encoder that takes its first axis
                    for the tokens, so a token attends to tokens at its position in other rows, never to its own row;
                    padding is attended to and averaged in
    zero_grad       gradients are zeroed in each step
    batch axis      `batch_first=True`: tokens attend to their own row
    padding mask    padding is not attended to
    masked mean     padding is not averaged in
    txclf           `TransformerClassifier` with the same settings: other initial weights, other kernels

The last fault, evaluation in training mode, changes nothing with dropout 0; each rung is scored both ways to show it.
Rows, tokens, batches, steps and the learning rate are the same on each rung. Vectors start from random numbers, because
this project ships no GloVe file. Scores are those of the last epoch: no choice is based on them.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from txclf.config.sections import Model, Tokenizer
from txclf.data.batches import TokenRows
from txclf.data.sampler import scoring_batches, window_batches
from txclf.data.tokenizer import encode, train_tokenizer, vocab_size
from txclf.data.word_cache import WordCache
from txclf.model.classifier import TransformerClassifier
from txclf.model.layers import sinusoids

WIDTH, HEADS, FEEDFORWARD, LAYERS, BATCH, CLIP = 50, 5, 50, 6, 30, 0.5
RUNGS = ["as written", "zero_grad", "batch axis", "padding mask", "masked mean", "txclf"]


class Article(nn.Module):
    """The article's network, with the fixes up to a rung. `mask` is True at real tokens."""

    def __init__(self, vocab: int, rung: int, max_length: int) -> None:
        super().__init__()
        self.rung = rung
        self.embedding = nn.Embedding(vocab, WIDTH)
        # As the scale by sqrt(width) expects them: an embedded token has unit variance.
        nn.init.normal_(self.embedding.weight, std=WIDTH**-0.5)
        self.register_buffer("table", sinusoids(max_length, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, FEEDFORWARD, 0.0, batch_first=self.has("batch axis"))
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 2)

    def has(self, fix: str) -> bool:
        return self.rung >= RUNGS.index(fix)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.embedding(ids) * math.sqrt(WIDTH) + self.table[: ids.shape[1]]  # type: ignore[index]
        hidden = self.encoder(hidden, src_key_padding_mask=~mask if self.has("padding mask") else None)
        if self.has("masked mean"):
            real = mask[..., None].float()
            pooled = (hidden * real).sum(dim=1) / real.sum(dim=1)
        else:
            pooled = hidden.mean(dim=1)
        logits: Tensor = self.head(pooled)
        return logits


def read(path: str) -> tuple[list[tuple[str, ...]], np.ndarray]:
    table = pq.read_table(path, columns=["text", "label"])
    names = sorted(set(table["label"].to_pylist()))
    return [(text,) for text in table["text"].to_pylist()], np.array(
        [names.index(x) for x in table["label"].to_pylist()]
    )


def token_rows(tokenizer, texts, labels, max_length) -> TokenRows:  # type: ignore[no-untyped-def]
    ids, _ = encode(WordCache(tokenizer), texts, max_length)
    return TokenRows([pa.table({"input_ids": ids, "label": pa.array(labels, pa.int32())})])


def forward(model: nn.Module, rows: TokenRows, part: np.ndarray) -> tuple[Tensor, Tensor]:
    batch = rows.batch(part)
    ids, mask = batch["input_ids"], batch["mask"]
    if isinstance(model, Article) and mask is None:
        mask = torch.ones_like(ids, dtype=torch.bool)
    return model(ids, mask), batch["labels"]


@torch.no_grad()
def accuracy(model: nn.Module, rows: TokenRows) -> float:
    right = 0
    for part in scoring_batches(rows.lengths, BATCH):
        logits, labels = forward(model, rows, part)
        right += int((logits.argmax(dim=1) == labels).sum())
    return right / len(rows)


def climb(rung: int, train: TokenRows, valid: TokenRows, test: TokenRows, vocab: int, args: argparse.Namespace) -> dict:
    """Train one rung and score it."""
    torch.manual_seed(args.seed)
    model: nn.Module
    if RUNGS[rung] == "txclf":
        kind = Model(
            hidden_size=WIDTH,
            num_heads=HEADS,
            intermediate_size=FEEDFORWARD,
            num_layers=LAYERS,
            dropout=0.0,
            position_encoding="sinusoidal",
            norm="post",
            activation="relu",
        )
        model = TransformerClassifier(kind, vocab, 2, args.max_length)
    else:
        model = Article(vocab, rung, args.max_length)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate)
    result: dict = {"rung": RUNGS[rung], "learning_rate": args.learning_rate, "epochs": args.epochs, "seed": args.seed}
    result |= {"train_rows": len(train), "max_length": args.max_length, "train_loss": [], "valid_accuracy": []}
    start = time.monotonic()
    steps = 0
    for epoch in range(args.epochs):
        model.train()
        total, shown = 0.0, 0.0
        batches = window_batches(train.lengths, BATCH, bucket_batches=32, seed=args.seed, epoch=epoch)
        for part in batches:
            if rung >= RUNGS.index("zero_grad"):
                optimizer.zero_grad()
            logits, labels = forward(model, train, part)
            loss = F.cross_entropy(logits, labels)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            total += loss.item()
            shown += loss.item()
            steps += 1
            if steps % 100 == 0:
                print(RUNGS[rung], "step", steps, round(shown / 100, 4), flush=True)
                shown = 0.0
        model.eval()
        result["train_loss"].append(round(total / len(batches), 4))
        result["valid_accuracy"].append(round(accuracy(model, valid), 4))
        print(RUNGS[rung], "epoch", epoch + 1, result["train_loss"][-1], result["valid_accuracy"][-1], flush=True)
    model.train()  # the last fault
    result["valid_accuracy_by_train"] = round(accuracy(model, valid), 4)
    model.eval()
    result |= {"steps": steps, "test_rows": len(test), "test_accuracy": round(accuracy(model, test), 4)}
    return result | {"minutes": round((time.monotonic() - start) / 60, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--out", default="article_ablation.jsonl", help="a line per rung is added here")
    parser.add_argument("--only", nargs="*", default=RUNGS, choices=RUNGS, help="rungs to climb")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rows", type=int, default=9_000, help="training rows")
    parser.add_argument("--valid-rows", type=int, default=1_000)
    parser.add_argument("--test-rows", type=int, default=4_000)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    (texts, labels), (test_texts, test_labels) = read(args.train), read(args.test)
    order = np.random.default_rng(args.seed).permutation(len(texts))
    valid_part, train_part = np.split(order[: args.valid_rows + args.rows], [args.valid_rows])
    test_part = np.random.default_rng(args.seed).permutation(len(test_texts))[: args.test_rows]
    tokenizer = train_tokenizer(Tokenizer(kind="word", vocab_size=20_000), [texts[i][0] for i in train_part])
    train, valid, test = (
        token_rows(tokenizer, [source[i] for i in part], known[part], args.max_length)
        for source, known, part in (
            (texts, labels, train_part),
            (texts, labels, valid_part),
            (test_texts, test_labels, test_part),
        )
    )
    for name in args.only:
        result = climb(RUNGS.index(name), train, valid, test, vocab_size(tokenizer), args)
        with Path(args.out).open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()

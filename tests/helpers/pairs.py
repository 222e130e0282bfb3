"""Pairs of texts, and tiny runs on them."""

from __future__ import annotations

import json
import random
from pathlib import Path

from txclf.config import run_config
from txclf.config.run_config import RunConfig

WORDS = ["red", "blue", "green", "small", "large", "old", "new"]


TINY = [
    "train.precision=fp32",  # `auto` is bf16 on some CPUs
    "name=pairs",
    "task=seq2seq",
    "data.text=source",
    "tokenizer.kind=word",
    "tokenizer.min_frequency=1",
    "tokenizer.max_length=8",
    "model.num_layers=1",
    "model.hidden_size=32",
    "model.num_heads=2",
    "model.intermediate_size=64",
    "model.dropout=0",
    "model.position_encoding=sinusoidal",
    "train.epochs=50",
    "train.early_stopping_patience=0",
    "train.batch_size=16",
    "train.learning_rate=5e-3",  # twice the rate ends below 90 % with the rounding of some CPUs
    "train.log_every_steps=1",
    "train.monitor=valid_exact_match",
    "generate.num_beams=2",
]


def pairs(folder: Path, data: str, *words: str) -> RunConfig:
    where = [f"storage={folder}", f"data.train={data}", f"data.test={data}", "tokenizer.lowercase=false"]
    return run_config.load(None, [*TINY, *where, *words])


def write_pairs(path: Path) -> str:
    """Write 600 pairs: the target is the source in reverse order, in capitals."""
    draw = random.Random(0)
    texts = [[draw.choice(WORDS) for _ in range(draw.randint(1, 4))] for _ in range(600)]
    rows = [{"source": " ".join(text), "target": " ".join(text[::-1]).upper()} for text in texts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)

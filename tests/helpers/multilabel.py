"""Rows with several labels, and tiny runs on them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from txclf.config import run_config
from txclf.config.run_config import RunConfig

TOPICS = {"food": ["bread", "soup"], "music": ["drum", "flute"], "sport": ["ball", "goal"], "rare, odd": ["comet"]}


TINY = [
    "train.precision=fp32",  # `auto` is bf16 on some CPUs
    "name=tags",
    "task=multilabel",
    "data.label=tags",
    "tokenizer.kind=word",
    "tokenizer.min_frequency=1",
    "tokenizer.max_length=12",
    "model.num_layers=1",
    "model.hidden_size=32",
    "model.num_heads=2",
    "model.intermediate_size=32",
    "train.epochs=6",
    "train.early_stopping_patience=0",
    "train.batch_size=16",
    "train.learning_rate=1e-2",
    "train.log_every_steps=1",
    "train.monitor=valid_map",
]


def make(count: int, seed: int) -> list[dict[str, Any]]:
    """Return texts with a word of each of their topics; some have no topic."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        tags = [topic for topic, chance in zip(TOPICS, (0.5, 0.3, 0.3, 0.05), strict=True) if draw.random() < chance]
        words = [draw.choice(TOPICS[tag]) for tag in tags] + draw.choices(["the", "of", "and", "it"], k=3)
        rows.append({"text": " ".join([*draw.sample(words, len(words)), str(number % 50)]), "tags": tags})
    return rows


def write_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def tagging(folder: Path, data: tuple[str, str], *words: str) -> RunConfig:
    return run_config.load(None, [*TINY, f"storage={folder}", f"data.train={data[0]}", f"data.test={data[1]}", *words])

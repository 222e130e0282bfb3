"""Small raw files, and prepared rows read back."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from txclf.data import shards

WORDS = ["the", "of", "film", "plot", "score", "actor", "scene", "light", "sound", "word"]


def make_rows(count: int, seed: int = 0) -> list[tuple[str, str]]:
    draw = random.Random(seed)
    return [
        (" ".join(draw.choices(WORDS, k=draw.randint(2, 12))) + f" {number}", draw.choice(["pos", "neg"]))
        for number in range(count)
    ]


def write_csv(path: Path, rows: Sequence[Sequence[str]], header: Sequence[str] = ("text", "label")) -> str:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def read(folder: str, split: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = shards.read_split(
        folder, shards.load_manifest(folder), split, shards.SCHEMA.names
    ).to_pylist()
    return rows

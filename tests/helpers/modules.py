"""Token ids and run files for modules."""

from __future__ import annotations

import numpy as np

from txclf.config import run_config
from txclf.config.run_config import RunConfig

WORDS = [
    "model.num_layers=1",
    "model.hidden_size=16",
    "model.num_heads=2",
    "model.intermediate_size=16",
    "tokenizer.max_length=12",
]


DRAW = np.random.default_rng(0)


LISTS = [DRAW.integers(0, 50, DRAW.integers(1, 13)).tolist() for _ in range(60)]


def make_run(*words: str) -> RunConfig:
    return run_config.load(None, [*WORDS, *words])

"""Row lengths and numbers of ranks for grids."""

from __future__ import annotations

import numpy as np

from txclf.data.sampler import Ints

RANKS = [1, 2, 3, 5]


def lengths_of(rows: int, seed: int = 0) -> Ints:
    """Return lengths distributed like those of texts: many short, few long."""
    return np.ceil(np.random.default_rng(seed).lognormal(2.5, 0.8, rows)).astype(np.int64)

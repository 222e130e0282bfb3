"""Row lengths and numbers of ranks for grids."""

from __future__ import annotations

import numpy as np

from txclf.data.sampler import Ints, Lengths

RANKS = [1, 2, 3, 5]


def lengths_of(rows: int, seed: int = 0) -> Ints:
    """Return lengths distributed like those of texts: many short, few long."""
    return np.ceil(np.random.default_rng(seed).lognormal(2.5, 0.8, rows)).astype(np.int64)


def padding_share(lengths: Lengths, plan: Ints, ranks: int = 1) -> float:
    """Return the share of padding in the global batches (S, G) on this number of ranks."""
    parts = [lengths[rows[rank::ranks]] for rows in plan for rank in range(ranks)]
    return 1.0 - sum(int(part.sum()) for part in parts) / sum(int(part.max()) * len(part) for part in parts)

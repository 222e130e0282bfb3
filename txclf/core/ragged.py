"""Ragged rows: rows of different lengths, stored one after another in a flat array."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def flatten(rows: Sequence[Sequence[int]]) -> tuple[npt.NDArray[np.int32], Ints]:
    """Return the values of all rows, one row after another (values,), and the length of each row (rows,)."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    return np.fromiter(chain.from_iterable(rows), np.int32, int(lengths.sum())), lengths


def concat_ranges(starts: Ints, lengths: npt.NDArray[np.signedinteger[Any]]) -> Ints:
    """Concatenate the ranges `start, start + 1, … start + length - 1`.

    These are the positions, in a flat array, of rows that start at `starts`.
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    positions: Ints = np.arange(total) + np.repeat(starts - ends + lengths, lengths)
    return positions

"""Hashes of the rows of a data set, and the counts of duplicates among them.

The rows are kept in ranges of the hash of their text. Equal texts are in the same range, so the ranges are compared one
after another and the memory for comparing is that of one range.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from txclf.core.hashing import UInt64s

NUM_RANGES = 256
_RANGE_SHIFT = np.uint64(56)
BLOCK_ROWS = 2**20
"""Rows that are collected before they are ordered by range."""


class RowHashes:
    """Hashes of the text and, optionally, the answer of each row: 8 or 16 bytes per row.

    The hashes of the texts must be evenly distributed, as those of `shards.text_hashes` are.
    """

    def __init__(self) -> None:
        self._num_rows = 0
        self._waiting: list[tuple[UInt64s, ...]] = []
        self._waiting_rows = 0
        self._blocks: list[list[tuple[UInt64s, ...]]] = []

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._num_rows

    def append(self, texts: UInt64s, answers: UInt64s | None = None) -> None:
        """Add rows. Every call passes `answers`, or none does."""
        self._waiting.append((texts,) if answers is None else (texts, answers))
        self._num_rows += len(texts)
        self._waiting_rows += len(texts)
        if self._waiting_rows >= BLOCK_ROWS:
            self._order_waiting()

    def in_range(self, number: int) -> tuple[UInt64s, ...]:
        """Return the hashes of the rows of a range: of the texts, and of the answers if there are any."""
        if self._waiting_rows:
            self._order_waiting()
        if not self._blocks:
            return np.empty(0, np.uint64), np.empty(0, np.uint64)
        return tuple(map(np.concatenate, zip(*(block[number] for block in self._blocks), strict=True)))

    def _order_waiting(self) -> None:
        columns = [np.concatenate(parts) for parts in zip(*self._waiting, strict=True)]
        numbers = (columns[0] >> _RANGE_SHIFT).astype(np.uint8)
        order = np.argsort(numbers, kind="stable")
        columns = [column[order] for column in columns]
        bounds = np.searchsorted(numbers[order], np.arange(NUM_RANGES + 1)).tolist()
        self._blocks.append([tuple(column[start:stop] for column in columns) for start, stop in pairwise(bounds)])
        self._waiting, self._waiting_rows = [], 0


class Duplicates(NamedTuple):
    """Counts of one split."""

    rows: int
    within: int
    """Rows whose text occurs earlier in the split."""
    of_train: int
    """Rows whose text also occurs in the train split; 0 for the train split."""


def count(
    hashes: Mapping[str, RowHashes], held_out: Callable[[UInt64s], Mapping[str, npt.NDArray[np.bool_]]] | None
) -> tuple[dict[str, Duplicates], int]:
    """Return the counts of each split, and the number of texts of the training files that have several answers.

    `hashes` has those of the files of each split, with answers for `train`. `held_out` returns masks of the training
    rows that form splits without files; None if there are none.
    """
    totals: dict[str, npt.NDArray[np.int64]] = {}
    conflicting = 0
    for number in range(NUM_RANGES):
        columns = {split: rows.in_range(number) for split, rows in hashes.items()}
        conflicting += num_conflicting(*columns["train"])
        texts = {split: found[0] for split, found in columns.items()}
        if held_out is not None:
            masks = held_out(texts["train"])
            every = texts["train"]
            texts |= {split: every[mask] for split, mask in masks.items() if split not in hashes}
            texts["train"] = every[~np.any(list(masks.values()), axis=0)]
        for split, found in texts.items():
            of_train = 0 if split == "train" else int(np.isin(found, texts["train"]).sum())
            counts = np.asarray([len(found), num_repeated(found), of_train])
            totals[split] = totals.get(split, np.zeros(3, np.int64)) + counts
    return {split: Duplicates(*counts.tolist()) for split, counts in totals.items()}, conflicting


def num_repeated(hashes: UInt64s) -> int:
    """Count the values that occur earlier in an array."""
    ordered = np.sort(hashes)
    return int((ordered[1:] == ordered[:-1]).sum())


def num_conflicting(texts: UInt64s, answers: UInt64s) -> int:
    """Count the texts that occur with more than one answer."""
    order = np.lexsort((answers, texts))
    texts, answers = texts[order], answers[order]
    conflicting = (texts[1:] == texts[:-1]) & (answers[1:] != answers[:-1])
    return len(np.unique(texts[1:][conflicting]))

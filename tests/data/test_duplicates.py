"""Counts of duplicates by ranges of hashes, compared with counts over all rows at once."""

from __future__ import annotations

import tracemalloc

import numpy as np
import numpy.typing as npt
import pytest

from txclf.core.hashing import UInt64s, mix
from txclf.data import duplicates, shards
from txclf.data.duplicates import RowHashes


def random_hashes(seed: int, rows: int, distinct: int) -> UInt64s:
    """Return hashes of rows of which many are equal."""
    return mix(np.random.default_rng(seed).integers(0, distinct, rows).astype(np.uint64))


def make_row_hashes(texts: UInt64s, answers: UInt64s | None = None, batch_rows: int = 700) -> RowHashes:
    rows = RowHashes()
    for start in range(0, len(texts), batch_rows):
        batch = slice(start, start + batch_rows)
        rows.append(texts[batch], None if answers is None else answers[batch])
    return rows


@pytest.mark.parametrize("block_rows", [1000, duplicates.BLOCK_ROWS])
def test_row_hashes_ranges_hold_every_row_once(monkeypatch: pytest.MonkeyPatch, block_rows: int) -> None:
    monkeypatch.setattr(duplicates, "BLOCK_ROWS", block_rows)
    texts, answers = random_hashes(0, 20_000, 9_000), np.arange(20_000, dtype=np.uint64)
    rows = make_row_hashes(texts, answers)
    ranges = [rows.in_range(number) for number in range(duplicates.NUM_RANGES)]
    for number, (range_texts, _) in enumerate(ranges):
        assert set((range_texts >> np.uint64(56)).tolist()) <= {number}
    found_texts, found_answers = (np.concatenate(columns) for columns in zip(*ranges, strict=True))
    assert len(rows) == 20_000
    assert sorted(found_answers.tolist()) == list(range(20_000))
    assert np.array_equal(found_texts, texts[found_answers.astype(np.int64)])


@pytest.mark.parametrize("valid_fraction", [None, 0.2])
@pytest.mark.parametrize("distinct", [5, 3_000, 10**9])
def test_count_is_equal_to_counting_all_rows_at_once(
    monkeypatch: pytest.MonkeyPatch, distinct: int, valid_fraction: float | None
) -> None:
    monkeypatch.setattr(duplicates, "BLOCK_ROWS", 4_000)
    train, test = random_hashes(1, 20_000, distinct), random_hashes(2, 5_000, distinct)
    answers = random_hashes(3, 20_000, 2)

    def is_valid(hashes: UInt64s) -> npt.NDArray[np.bool_]:
        return shards.validation_rows(hashes, 7, valid_fraction or 0.0)

    held_out = None if valid_fraction is None else lambda hashes: {"valid": is_valid(hashes), "test": hashes == 0}
    hashes = {"train": make_row_hashes(train, answers), "test": make_row_hashes(test)}
    counts, conflicting = duplicates.count(hashes, held_out)

    splits = {"train": train, "test": test}
    if held_out is not None:
        splits |= {"train": train[~is_valid(train)], "valid": train[is_valid(train)]}
    assert set(counts) == set(splits)
    for split, rows in splits.items():
        of_train = 0 if split == "train" else int(np.isin(rows, splits["train"]).sum())
        assert counts[split] == (len(rows), len(rows) - len(np.unique(rows)), of_train)
    pairs = np.unique(np.stack([train, answers]), axis=1)
    assert conflicting == int((np.unique(pairs[0], return_counts=True)[1] > 1).sum())


def test_count_needs_a_fraction_of_the_memory_of_the_hashes() -> None:
    rows = 2_000_000
    hashes = {"train": make_row_hashes(random_hashes(4, rows, rows), np.zeros(rows, np.uint64), batch_rows=2048)}
    hashes["train"].in_range(0)
    tracemalloc.start()
    duplicates.count(hashes, None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * rows / 10


def test_count_without_rows_is_zero() -> None:
    assert duplicates.count({"train": RowHashes()}, None) == ({"train": (0, 0, 0)}, 0)

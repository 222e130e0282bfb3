"""Shuffle windows, over a grid of rows, shards, batch sizes and window sizes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from txclf.data.shards import GROUP_ROWS, Shard, Split
from txclf.data.shuffle_windows import Piece, ShuffleWindows, row_groups

SHARDS = [(1,), (30,), (5, 7, 1), (GROUP_ROWS,), (GROUP_ROWS + 1, 100), (3 * GROUP_ROWS, 20_000, 1, 9000)]
GRID = [
    (shards, batch_size, max_steps)
    for shards in SHARDS
    for batch_size in (1, 3, 64, 500, 9001)
    for max_steps in (1, 2, 7, 40, 10**6)
    if batch_size <= sum(shards) <= 2000 * batch_size * max_steps
]


def numbers(pieces: list[Piece]) -> list[int]:
    return [piece.number + offset for piece in pieces for offset in range(piece.stop - piece.start)]


@pytest.mark.parametrize(("shards", "batch_size", "max_steps"), GRID)
def test_windows_of_an_epoch_hold_each_row_once(shards: tuple[int, ...], batch_size: int, max_steps: int) -> None:
    windows = ShuffleWindows(shards, batch_size, max_steps, seed=3)
    assert windows.steps_per_epoch == sum(shards) // batch_size
    for epoch in (0, 2):
        own = range(epoch * windows.windows_per_epoch, (epoch + 1) * windows.windows_per_epoch)
        found = [numbers(windows.pieces(window)) for window in own]
        assert sorted(number for window in found for number in window) == list(range(sum(shards)))
        # Each window has the rows of its steps, and the last those that fill no batch.
        sizes = [len(windows.steps(window)) * batch_size for window in own]
        assert [len(window) for window in found[:-1]] == sizes[:-1]
        assert 0 <= len(found[-1]) - sizes[-1] < batch_size
        assert all(0 < len(windows.steps(window)) <= max_steps for window in own)


@pytest.mark.parametrize(("shards", "batch_size", "max_steps"), GRID)
def test_windows_have_consecutive_steps(shards: tuple[int, ...], batch_size: int, max_steps: int) -> None:
    windows = ShuffleWindows(shards, batch_size, max_steps, seed=0)
    every = [windows.steps(window) for window in range(3 * windows.windows_per_epoch)]
    assert every[0].start == 0
    assert all(before.stop == after.start for before, after in pairwise(every))
    assert every[-1].stop == 3 * windows.steps_per_epoch
    for number, steps in enumerate(every):
        assert {windows.window_of(step) for step in (steps[0], steps[-1])} == {number}
        assert windows.place(number)[0] == steps[0] // windows.steps_per_epoch


def test_pieces_are_rows_of_their_group() -> None:
    shards = (3 * GROUP_ROWS, 20_000, 1, 9000)
    windows = ShuffleWindows(shards, 64, 40, seed=1)
    firsts = np.cumsum((0, *shards))
    for window in range(windows.windows_per_epoch):
        pieces = windows.pieces(window)
        assert pieces == sorted(pieces)
        for shard, group, start, stop, number in pieces:
            assert 0 <= start < stop <= min(GROUP_ROWS, shards[shard] - group * GROUP_ROWS)
            assert number == firsts[shard] + group * GROUP_ROWS + start


def test_pieces_of_a_split_in_one_window_are_the_split_in_order() -> None:
    windows = ShuffleWindows((9000, 50), 32, 10**6, seed=7)
    assert windows.windows_per_epoch == 1
    assert [numbers(windows.pieces(epoch)) for epoch in (0, 5)] == [list(range(9050))] * 2


def test_pieces_differ_by_seed_and_epoch_and_repeat() -> None:
    def orders(seed: int, epoch: int) -> list[Piece]:
        return ShuffleWindows((40 * GROUP_ROWS,), 64, 640, seed).pieces(epoch * 8)

    assert orders(0, 0) == orders(0, 0)
    assert orders(0, 0) != orders(0, 1)
    assert orders(0, 0) != orders(1, 0)


def test_of_split_windows_have_at_most_the_tokens_or_one_step() -> None:
    shard = Shard(
        file="a",
        rows=1000,
        tokens=40_000,
        full_tokens=40_000,
        truncated_rows=0,
        label_counts=[],
        length_histogram=[],
        group_tokens=[],
    )
    split = Split.model_construct(shards=[shard], rows=1000, tokens=40_000, target_tokens=10_000)
    assert ShuffleWindows.of_split(split, 10, 5000, 0).max_steps == 10
    assert ShuffleWindows.of_split(split, 10, 5499, 0).max_steps == 10
    assert ShuffleWindows.of_split(split, 10, 1, 0).max_steps == 1
    assert ShuffleWindows.of_split(split, 10, 50_000, 0).windows_per_epoch == 1


def test_token_key_is_that_of_the_epoch() -> None:
    windows = ShuffleWindows((1000,), 10, 7, seed=5)
    keys = [windows.token_key(window) for window in range(2 * windows.windows_per_epoch)]
    assert keys == [5] * windows.windows_per_epoch + [5 ^ (1 << 32)] * windows.windows_per_epoch


def test_row_groups_cover_the_rows() -> None:
    groups = row_groups((GROUP_ROWS + 1, 3)).tolist()
    assert groups == [[0, 0, 0, GROUP_ROWS], [0, 1, GROUP_ROWS, 1], [1, 0, GROUP_ROWS + 1, 3]]

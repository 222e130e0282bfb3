"""Readers of shards on disk: the rows of every step on any number of ranks, and each scored row once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.lengths import RANKS
from tests.helpers.shards import write_shards
from txclf.core.errors import DataError
from txclf.data.batches import PairRows, TokenRows
from txclf.data.sampler import WHOLE, Ints, window_batches
from txclf.data.shards import GROUP_ROWS, Shard
from txclf.data.shuffle_windows import ShuffleWindows
from txclf.data.window_reader import LocalWindows, ScoringReader, TrainReader

SIZES = [GROUP_ROWS + 300, 500, 47]
ROWS = sum(SIZES)


def train_reader(
    folder: Path, shards: tuple[Shard, ...], max_steps: int = 20, *, balanced: bool = False, dropout: float = 0.0
) -> TrainReader:
    windows = ShuffleWindows(tuple(shard.rows for shard in shards), 64, max_steps, seed=3)
    return TrainReader(str(folder), shards, ("input_ids", "label"), WHOLE, windows, 8, balanced, dropout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="module")
def shards(folder: Path) -> tuple[Shard, ...]:
    return write_shards(folder, SIZES)


def rows_of_steps(reader: TrainReader, steps: range, ranks: int) -> dict[int, list[int]]:
    """Return the numbers of the rows of each step over all ranks, in the order of the global batch."""
    found: dict[int, list[int]] = {}
    for rank in range(ranks):
        for window in LocalWindows(reader, {}).train(steps, rank, ranks):
            assert isinstance(window.rows, TokenRows)
            for step in window.steps:
                (part,) = window.parts(step, 1)
                own = window.rows.tokens(part)[np.cumsum(window.rows.lengths[part]) - window.rows.lengths[part]]
                assert (own == window.rows.numbers[part]).all()  # the first token of a row is its number
                found.setdefault(step, [0] * 64)[rank::ranks] = own.tolist()
                assert window.step_size(step) == 64
    return found


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("balanced", [False, True])
def test_train_steps_have_the_same_rows_on_any_number_of_ranks(
    folder: Path, shards: tuple[Shard, ...], balanced: bool, dropout: float
) -> None:
    reader = train_reader(folder, shards, balanced=balanced, dropout=dropout)
    steps = range(2 * reader.windows.steps_per_epoch)
    alone = rows_of_steps(reader, steps, 1)
    assert list(alone) == list(steps)
    for ranks in RANKS[1:]:
        assert rows_of_steps(reader, steps, ranks) == alone
    for step in (0, 19, 20, steps[-1]):
        assert reader.step_rows(step).tolist() == alone[step]
    if not balanced:
        epoch = [row for step in steps[: len(steps) // 2] for row in alone[step]]
        assert len(set(epoch)) == len(epoch) == ROWS // 64 * 64


def test_train_from_a_step_gives_the_rows_from_its_window(folder: Path, shards: tuple[Shard, ...]) -> None:
    reader = train_reader(folder, shards)
    whole = rows_of_steps(reader, range(200), 1)
    late = rows_of_steps(reader, range(150, 200), 1)
    assert set(range(150, 200)) <= set(late)
    assert late == {step: whole[step] for step in late}
    assert len(late) <= 50 + 2 * reader.windows.steps_per_window


def test_train_of_one_window_shuffles_the_split_as_a_whole(folder: Path, shards: tuple[Shard, ...]) -> None:
    reader = train_reader(folder, shards, max_steps=10**6)
    (window,) = LocalWindows(reader, {}).train(range(3), 0, 1)
    everything = reader.rows([reader.read(0)])
    plan = window_batches(everything.lengths, 64, bucket_batches=8, seed=3, epoch=0)
    assert isinstance(window.rows, TokenRows)
    assert window.rows.numbers.tolist() == plan.ravel().tolist()


def test_token_dropout_depends_on_the_row_and_not_on_its_window(folder: Path, shards: tuple[Shard, ...]) -> None:
    def kept(max_steps: int) -> dict[int, list[int]]:
        reader = train_reader(folder, shards, max_steps, dropout=0.4)
        rows = {}
        for window in LocalWindows(reader, {}).train(range(reader.windows.steps_per_epoch), 0, 1):
            assert isinstance(window.rows, TokenRows)
            for position, number in enumerate(window.rows.numbers.tolist()):
                ids = window.rows.pad(np.array([position]), 0.4, window.token_key).input_ids
                rows[number] = ids[0].tolist()
        return rows

    small, large = kept(20), kept(10**6)
    common = set(small) & set(large)
    assert len(common) > ROWS - 200
    assert all(small[number] == large[number] for number in common)
    lengths = [len(row) for row in small.values()]
    assert 0.5 < sum(lengths) / sum(shard.tokens for shard in shards) < 0.75


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("max_tokens", [1, 50_000, 10**9])
def test_scoring_gives_each_row_once(folder: Path, shards: tuple[Shard, ...], ranks: int, max_tokens: int) -> None:
    reader = ScoringReader(str(folder), shards, ("input_ids", "label"), WHOLE, max_tokens)
    assert reader.num_windows == {1: 4, 50_000: 2, 10**9: 1}[max_tokens]
    source = LocalWindows(train_reader(folder, shards), {"valid": reader})
    found: list[int] = []
    for rank in range(ranks):
        for rows in source.scoring("valid", rank, ranks):
            assert isinstance(rows, TokenRows)
            assert (np.diff(rows.lengths) <= 0).all()
            assert (rows.labels == rows.numbers % 3).all()
            found += rows.numbers.tolist()
    assert sorted(found) == list(range(ROWS))


def test_pairs_are_read_with_their_target_tokens(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, [300], targets=True)
    windows = ShuffleWindows((300,), 32, 4, seed=0)
    reader = TrainReader(str(tmp_path), shards, ("input_ids", "target_ids"), WHOLE, windows, 2, False, 0.0)
    sizes: dict[int, Ints] = {}
    for rank in range(2):
        for window in LocalWindows(reader, {}).train(range(9), rank, 2):
            assert isinstance(window.rows, PairRows)
            for step in window.steps:
                (part,) = window.parts(step, 1)
                total = sizes.setdefault(step, np.zeros(2, np.int64))
                total += (window.rows.step_size(part), window.step_size(step))
    assert len(sizes) == 9
    assert all(2 * own == both for own, both in sizes.values())


def test_damaged_shard_is_named(tmp_path: Path) -> None:
    shards = write_shards(tmp_path, [300, 200])
    path = tmp_path / shards[1].file
    content = bytearray(path.read_bytes())
    content[40:60] = bytes(20)
    path.write_bytes(content)
    source = LocalWindows(train_reader(tmp_path, shards), {})
    with pytest.raises(DataError, match=f"{shards[1].file}.*cannot be read"):
        list(source.train(range(4), 0, 1))

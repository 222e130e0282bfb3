"""Which rank gets which rows, over grids of rows, ranks and batches; and the padded tensors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product

import numpy as np
import pyarrow as pa
import pytest
import torch

from txclf.data import batches
from txclf.data.batches import Ints, Layout, TokenRows

RANKS = [1, 2, 3, 5]
GRID = [
    (rows, batch_size, window)
    for rows, batch_size, window in product([1, 2, 7, 30, 101, 256], [1, 2, 5, 16, 30], [1, 3, 32])
    if batch_size <= rows
]


def lengths_of(rows: int, seed: int = 0) -> Ints:
    """Lengths as texts have them: many short, few long."""
    return np.ceil(np.random.default_rng(seed).lognormal(2.5, 0.8, rows)).astype(np.int64)


# -------------------------------------------------------------------------------------------------------------- epochs


@pytest.mark.parametrize(("rows", "batch_size", "window"), GRID)
def test_an_epoch_meets_each_row_at_most_once_and_leaves_out_less_than_a_batch(
    rows: int, batch_size: int, window: int
) -> None:
    lengths = lengths_of(rows)
    plan = batches.epoch_batches(lengths, batch_size, window, seed=1, epoch=2)
    assert plan.shape == (batches.steps_per_epoch(rows, batch_size), batch_size)
    met = set(plan.ravel().tolist())
    assert len(met) == plan.size
    assert met <= set(range(rows))
    assert rows - len(met) <= batch_size - 1
    again = batches.epoch_batches(lengths, batch_size, window, seed=1, epoch=2)
    assert (again == plan).all()


@pytest.mark.parametrize(("rows", "batch_size", "window"), GRID)
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_the_ranks_share_a_batch_out_whatever_their_number(
    rows: int, batch_size: int, window: int, accumulate: int
) -> None:
    plan = batches.epoch_batches(lengths_of(rows), batch_size, window, seed=0, epoch=0)
    for step_rows, ranks in product(plan[:4], RANKS):
        parts = [batches.rank_parts(step_rows, rank, ranks, accumulate) for rank in range(ranks)]
        assert {len(own) for own in parts} == {accumulate}
        together = np.concatenate([part for own in parts for part in own])
        assert sorted(together.tolist()) == sorted(step_rows.tolist())
        sizes = [len(part) for own in parts for part in own]
        assert max(sizes) - min(sizes) <= 1
        if batch_size >= ranks * accumulate:
            assert min(sizes) >= 1


def test_every_rank_sees_about_the_same_lengths() -> None:
    lengths = lengths_of(5000)
    plan = batches.epoch_batches(lengths, 50, 32, seed=0, epoch=0)
    for step_rows in plan:
        longest = [lengths[np.concatenate(batches.rank_parts(step_rows, rank, 5, 2))].max() for rank in range(5)]
        ordered = np.sort(lengths[step_rows])
        assert min(longest) >= ordered[-5]


def test_the_parts_of_a_rank_are_of_neighbouring_lengths() -> None:
    lengths = lengths_of(600)
    (step_rows,) = batches.epoch_batches(lengths, 600, 1, seed=0, epoch=0)
    for parts in (batches.rank_parts(step_rows, rank, 2, 3) for rank in range(2)):
        assert all(lengths[one].max() <= lengths[two].min() for one, two in pairwise(parts))


def test_other_epochs_leave_out_other_rows() -> None:
    lengths = lengths_of(25)
    left = {
        frozenset(set(range(25)) - set(batches.epoch_batches(lengths, 10, 2, seed=0, epoch=epoch).ravel().tolist()))
        for epoch in range(20)
    }
    assert {len(rows) for rows in left} == {5}
    assert len(left) > 15
    assert frozenset.union(*left) == set(range(25))


@pytest.mark.parametrize("window", [1, 4, 100])
def test_the_order_is_drawn_from_the_seed_and_the_epoch(window: int) -> None:
    lengths = lengths_of(400)
    plans = [batches.epoch_batches(lengths, 8, window, seed, epoch) for seed, epoch in product(range(3), range(3))]
    assert len({plan.tobytes() for plan in plans}) == 9
    if window < 100:  # where a window holds all rows, the few longest meet each time
        groups = [{frozenset(rows) for rows in plan.tolist()} for plan in plans]
        assert all(not one & two for number, one in enumerate(groups) for two in groups[:number])


def test_batches_of_a_window_do_not_come_by_length() -> None:
    lengths = lengths_of(3200)
    plan = batches.epoch_batches(lengths, 10, 32, seed=0, epoch=0)
    means = lengths[plan].mean(axis=1).reshape(10, 32)
    assert all(abs(np.corrcoef(window, np.arange(32))[0, 1]) < 0.6 for window in means)
    assert abs(np.corrcoef(means.ravel(), np.arange(320))[0, 1]) < 0.2


def test_the_orders_are_pinned() -> None:
    plan = batches.epoch_batches(np.arange(12) % 5, 4, 2, seed=3, epoch=1)
    assert plan.tolist() == [[0, 5, 10, 11], [1, 2, 7, 4], [6, 8, 3, 9]]


# -------------------------------------------------------------------------------------------------------------- padding


# ------------------------------------------------------------------------------------------------------ balanced epochs


def labels_of(rows: int, shares: Sequence[float], seed: int = 0) -> batches.Int32s:
    return np.random.default_rng(seed).choice(len(shares), rows, p=shares).astype(np.int32)


SHARES = [[1.0], [0.5, 0.5], [0.97, 0.03], [0.7, 0.2, 0.0, 0.1], [0.25] * 4]


@pytest.mark.parametrize(("rows", "batch_size", "window"), GRID)
@pytest.mark.parametrize("shares", SHARES)
def test_a_balanced_epoch_has_as_many_steps_and_every_class_equally_often(
    rows: int, batch_size: int, window: int, shares: list[float]
) -> None:
    lengths, labels = lengths_of(rows), labels_of(rows, shares)
    plan = batches.epoch_batches(lengths, batch_size, window, 1, 2, labels)
    assert plan.shape == (rows // batch_size, batch_size)
    met = np.bincount(plan.ravel(), minlength=rows)
    occurring = np.unique(labels)
    by_class = [met[labels == label] for label in occurring]
    totals = [int(own.sum()) for own in by_class]
    assert max(totals) - min(totals) <= 1
    for own, total in zip(by_class, totals, strict=True):
        # Every row as often as another of its class, give or take one.
        assert own.max() - own.min() <= 1
        assert own.max() == -(-total // len(own))
    again = batches.epoch_batches(lengths, batch_size, window, 1, 2, labels)
    assert (again == plan).all()


def test_balanced_epochs_differ_and_meet_all_rows_in_time() -> None:
    lengths, labels = lengths_of(400), labels_of(400, [0.9, 0.1])
    plans = [batches.epoch_batches(lengths, 16, 4, seed, epoch, labels) for seed, epoch in product(range(2), range(8))]
    assert len({plan.tobytes() for plan in plans}) == 16
    assert len(np.unique(np.concatenate(plans[:8]))) == 400
    # The classes are spread over the epoch, not only equal over it.
    for plan in plans:
        halves = [labels[half].mean() for half in np.array_split(plan.ravel(), 2)]
        assert halves == pytest.approx([0.5, 0.5], abs=0.1)


def test_copies_of_a_row_do_not_meet_in_a_batch_where_there_is_room() -> None:
    lengths, labels = lengths_of(2000), labels_of(2000, [0.95, 0.05])
    plan = batches.epoch_batches(lengths, 32, 32, 0, 0, labels)
    assert np.bincount(plan.ravel()).max() >= 9
    twice = sum(len(rows) - len(np.unique(rows)) for rows in plan)
    # A third of the places would be copies if windows were 32 batches all the same.
    assert twice / plan.size < 0.005
    # Within the window, batches are still of neighbouring lengths.
    spread = np.mean([lengths[rows].std() for rows in plan])
    mixed = np.mean([lengths[rows].std() for rows in batches.epoch_batches(lengths, 32, 1, 0, 0, labels)])
    assert spread < mixed / 2


def test_a_plan_gives_the_balanced_rows_of_any_step_in_any_order() -> None:
    lengths, labels = lengths_of(100), labels_of(100, [0.8, 0.2])
    plan = batches.Plan(lengths, 16, 4, 5, labels)
    expected = np.concatenate([batches.epoch_batches(lengths, 16, 4, 5, epoch, labels) for epoch in range(3)])
    for step in (17, 3, 0, 11, 6, 12):
        assert plan.rows(step).tolist() == expected[step].tolist()


def naive_padding_share(lengths: Ints, plan: Ints, ranks: int, accumulate: int) -> float:
    real = padded = 0
    for step_rows, rank in product(plan.tolist(), range(ranks)):
        own = step_rows[rank::ranks]
        size, more = divmod(len(own), accumulate)
        start = 0
        for part in range(accumulate):
            stop = start + size + (part < more)
            found = [int(lengths[row]) for row in own[start:stop]]
            real, padded, start = real + sum(found), padded + max(found, default=0) * len(found), stop
    return 1 - real / padded


@pytest.mark.parametrize(("ranks", "accumulate"), [(1, 1), (1, 3), (2, 2), (3, 1), (5, 4)])
@pytest.mark.parametrize("batch_size", [5, 16])
def test_the_padding_share(ranks: int, accumulate: int, batch_size: int) -> None:
    lengths = lengths_of(300)
    plan = batches.epoch_batches(lengths, batch_size, 4, seed=0, epoch=0)
    share = batches.padding_share([lengths], plan, ranks, accumulate)
    assert share == pytest.approx(naive_padding_share(lengths, plan, ranks, accumulate))


def test_windows_of_many_batches_save_padding() -> None:
    lengths = lengths_of(4000)
    share = [
        batches.padding_share([lengths], batches.epoch_batches(lengths, 32, window, seed=0, epoch=0), 2, 1)
        for window in (1, 4, 32, 125)
    ]
    assert share[0] > 0.6
    assert all(more < less for less, more in pairwise(share))
    assert share[2] < 0.15
    assert share[3] < 0.05


def test_no_padding() -> None:
    assert batches.padding_share([np.full(10, 7)], np.arange(10).reshape(2, 5), 2, 2) == 0.0
    assert batches.padding_share([lengths_of(3)], np.empty((0, 5), np.int64), 1, 1) == 0.0


# -------------------------------------------------------------------------------------------------------------- scoring


@pytest.mark.parametrize("rows", [0, 1, 2, 4, 5, 64, 101])
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_scoring_meets_each_row_once_longest_first(rows: int, ranks: int, batch_size: int) -> None:
    lengths = lengths_of(rows)
    shares = [list(batches.scoring_batches(lengths, batch_size, rank, ranks)) for rank in range(ranks)]
    met = [row for share in shares for part in share for row in part.tolist()]
    assert sorted(met) == list(range(rows))
    for share in shares:
        assert all(1 <= len(part) <= batch_size for part in share)
        assert all(len(part) == batch_size for part in share[:-1])
        order = [length for part in share for length in lengths[part].tolist()]
        assert order == sorted(order, reverse=True)
    counts = [sum(map(len, share)) for share in shares]
    assert max(counts) - min(counts) <= 1


# ------------------------------------------------------------------------------------------------------------- tensors


def make_table(lists: Sequence[Sequence[int]], labels: Sequence[int]) -> pa.Table:
    return pa.table({"input_ids": pa.array(lists, pa.list_(pa.int32())), "label": pa.array(labels, pa.int32())})


LISTS = [np.random.default_rng(length).integers(1, 99, length).tolist() for length in [3, 1, 5, 2, 2, 7, 1, 4, 6, 1]]
LABELS = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
WHOLE = make_table(LISTS, LABELS)
SHAPES: dict[str, tuple[list[pa.Table], list[int]]] = {
    "one table": ([WHOLE], list(range(10))),
    "several tables": ([WHOLE.slice(0, 4), WHOLE.slice(4)], list(range(10))),
    "chunks": ([pa.concat_tables([WHOLE.slice(0, 3), WHOLE.slice(3, 1), WHOLE.slice(4)])], list(range(10))),
    "a slice": ([WHOLE.slice(3, 4)], [3, 4, 5, 6]),
    "slices in another order": ([WHOLE.slice(7), WHOLE.slice(2, 3)], [7, 8, 9, 2, 3, 4]),
    "empty ones between": ([WHOLE.slice(0, 0), WHOLE.slice(0, 2), WHOLE.slice(5, 0), WHOLE.slice(2, 1)], [0, 1, 2]),
    "picked rows": ([WHOLE.take([9, 0, 0, 5])], [9, 0, 0, 5]),
    "a filtered table": ([WHOLE.filter(pa.array([row % 2 == 0 for row in range(10)]))], [0, 2, 4, 6, 8]),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_gathered_and_padded(shape: str) -> None:
    tables, source = SHAPES[shape]
    rows = TokenRows(tables)
    lists, labels = [LISTS[row] for row in source], [LABELS[row] for row in source]
    assert len(rows) == len(source)
    assert rows.lengths.tolist() == list(map(len, lists))
    assert rows.labels.tolist() == labels
    draw = np.random.default_rng(0)
    for size in (1, 2, len(source), 3 * len(source)):
        picked = draw.integers(0, len(source), size)
        batch = rows.batch(picked)
        chosen = [lists[row] for row in picked]
        longest = max(map(len, chosen))
        assert batch["input_ids"].tolist() == [ids + [0] * (longest - len(ids)) for ids in chosen]
        assert batch["labels"].tolist() == [labels[row] for row in picked]
        assert batch["num_tokens"] == sum(map(len, chosen))
        mask = batch["mask"]
        assert (mask is None) == (len({len(ids) for ids in chosen}) == 1)
        if mask is not None:
            assert mask.tolist() == [[place < len(ids) for place in range(longest)] for ids in chosen]


def test_the_types_of_a_batch() -> None:
    batch = TokenRows([WHOLE]).batch(np.array([0, 1]))
    assert batch["mask"] is not None
    found = [tensor.dtype for tensor in (batch["input_ids"], batch["mask"], batch["labels"])]
    assert found == [torch.int64, torch.bool, torch.int64]
    assert type(batch["num_tokens"]) is int


@pytest.mark.parametrize("tables", [[], [WHOLE.slice(0, 0)], [WHOLE.slice(4, 0), WHOLE.slice(9, 0)]])
def test_no_rows(tables: list[pa.Table]) -> None:
    rows = TokenRows(tables)
    assert len(rows) == 0
    assert rows.labels.tolist() == rows.starts.tolist() == []


def test_one_chunk_is_not_copied() -> None:
    array = pa.array(LISTS, pa.list_(pa.int32()))
    table = pa.table({"input_ids": array, "label": pa.array(LABELS, pa.int32())})
    assert np.shares_memory(TokenRows([table]).values, array.values.to_numpy())
    # A batch is the caller's own: writing to it changes no row.
    rows = TokenRows([table])
    rows.batch(np.array([0]))["input_ids"].zero_()
    assert rows.batch(np.array([0]))["input_ids"].tolist() == [LISTS[0]]


# -------------------------------------------------------------------------------------------------------- word dropout


def rows_of(batch: batches.Batch) -> list[list[int]]:
    ids, mask = batch["input_ids"], batch["mask"]
    kept = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    return [row[inside].tolist() for row, inside in zip(ids, kept, strict=True)]


@pytest.fixture(scope="module")
def long_rows() -> TokenRows:
    """200 rows whose tokens are numbered through, so that a token names its place."""
    lengths = lengths_of(200)
    ends = np.cumsum(lengths).tolist()
    lists = [list(range(end - length, end)) for end, length in zip(ends, lengths.tolist(), strict=True)]
    return TokenRows([make_table(lists, [0] * 200)])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_word_dropout_leaves_tokens_out_and_the_others_in_order(long_rows: TokenRows, share: float) -> None:
    every = np.arange(200)
    whole = rows_of(long_rows.batch(every))
    batch = long_rows.batch(every, share, key=5)
    some = rows_of(batch)
    for row, kept in zip(whole, some, strict=True):
        assert kept
        assert kept == sorted(set(kept) & set(row))
    assert batch["num_tokens"] == sum(map(len, some))
    assert batch["input_ids"].shape == (200, max(map(len, some)))
    total = int(long_rows.lengths.sum())
    lost = total - batch["num_tokens"]
    spread = (total * share * (1 - share)) ** 0.5
    assert lost < total * share + 4 * spread
    assert share > 0.5 or lost > total * share - 4 * spread - 5  # short rows keep one token


def test_which_tokens_are_left_out_depends_on_the_key_not_on_the_batch(long_rows: TokenRows) -> None:
    together = rows_of(long_rows.batch(np.arange(200), 0.3, key=1))
    for part in (np.array([7]), np.array([199, 0, 7]), np.arange(50, 100)):
        assert rows_of(long_rows.batch(part, 0.3, key=1)) == [together[row] for row in part]
    other = rows_of(long_rows.batch(np.arange(200), 0.3, key=2))
    assert sum(one != two for one, two in zip(together, other, strict=True)) > 150


def test_a_row_of_one_token_keeps_it() -> None:
    rows = TokenRows([make_table([[number] for number in range(50)], [0] * 50)])
    assert rows_of(rows.batch(np.arange(50), 0.9, key=0)) == [[number] for number in range(50)]


# ------------------------------------------------------------------------------------------------- windows and segments


@pytest.mark.parametrize(("window", "overlap"), [(1, 0), (4, 0), (4, 1), (4, 3), (50, 10)])
def test_windows_cover_a_row_and_overlap_as_they_should(window: int, overlap: int) -> None:
    lengths = lengths_of(200)
    layout = Layout(window, overlap)
    rows, starts, sizes = layout.spans(lengths)
    assert np.bincount(rows).tolist() == layout.counts(lengths).tolist()
    for row, length in enumerate(lengths.tolist()):
        own = rows == row
        first, size = starts[own], sizes[own]
        assert size.tolist() == [min(window, length)] * len(size)
        assert first[0] == 0
        assert first[-1] + size[-1] == length
        assert (np.diff(first[:-1]) == window - overlap).all()
        assert (np.diff(first) > 0).all()
        assert len(first) == 1 or first[-1] - first[-2] <= window - overlap


def test_the_windows_of_a_batch_hold_their_rows_tokens_whatever_the_neighbours(long_rows: TokenRows) -> None:
    rows = TokenRows([], layout=Layout(6, 2))
    rows.values, rows.lengths, rows.starts, rows.labels = (
        long_rows.values,
        long_rows.lengths,
        long_rows.starts,
        long_rows.labels,
    )
    picked = np.array([5, 0, 150, 5])
    for dropout in (0.0, 0.5):
        batch = rows.batch(picked, dropout, key=3)
        windows = batch["windows"]
        assert windows is not None
        together: list[list[list[int]]] = [[] for _ in picked]
        for owner, window in zip(windows.tolist(), rows_of(batch), strict=True):
            together[owner].append(window)
        assert batch["num_tokens"] == sum(len(window) for own in together for window in own)
        assert batch["labels"].shape == (4,)
        for row, own in zip(picked, together, strict=True):
            assert own == rows_of(rows.batch(np.array([row]), dropout, key=3))
            assert all(own)
            if not dropout:
                assert set().union(*own) == set(rows_of(long_rows.batch(np.array([row])))[0])


def test_scoring_batches_are_bounded_by_their_windows() -> None:
    lengths = lengths_of(300)
    costs = Layout(5, 1).counts(lengths)
    for ranks in RANKS:
        found = [list(batches.scoring_batches(lengths, 8, rank, ranks, costs)) for rank in range(ranks)]
        assert sorted(np.concatenate([part for own in found for part in own]).tolist()) == list(range(300))
        assert all(costs[part].sum() <= 8 or len(part) == 1 for own in found for part in own)


def test_segments_are_the_columns_of_the_tokens_in_any_batch() -> None:
    lists = [[5, 6, 2, 7], [2, 8], [9], [4, 2, 2, 3, 3, 3]]
    expected = [[0, 0, 0, 1], [0, 1], [0], [0, 0, 1, 2, 2, 2]]
    rows = TokenRows([make_table(lists, [0] * 4)], layout=Layout(separator=2))
    for picked in ([0], [3, 2, 1, 0], [1, 3]):
        batch = rows.batch(np.array(picked))
        segments = batch["segments"]
        assert segments is not None
        longest = max(len(lists[row]) for row in picked)
        assert segments.tolist() == [expected[row] + [0] * (longest - len(lists[row])) for row in picked]
    # A token keeps its column where the separator before it is left out, and in a window that begins after it.
    whole = rows_of(rows.batch(np.array([3])))[0]
    for key in range(20):
        batch = rows.batch(np.array([3]), 0.5, key)
        ids, segments = batch["input_ids"][0].tolist(), batch["segments"]
        assert segments is not None
        assert len(whole) == 6
        assert [number for token, number in zip(ids, segments[0].tolist(), strict=True) if token in (3, 4)] == [
            {4: 0, 3: 2}[token] for token in ids if token in (3, 4)
        ]
    windowed = TokenRows([make_table(lists, [0] * 4)], layout=Layout(2, 0, separator=2)).batch(np.array([3]))
    assert windowed["segments"] is not None
    assert windowed["segments"].tolist() == [[0, 0], [1, 2], [2, 2]]

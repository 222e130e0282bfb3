"""Assignment of rows to steps and ranks, over grids of rows, ranks and batches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product

import numpy as np
import pytest

from tests.helpers.lengths import RANKS, lengths_of, padding_share
from txclf.data import sampler as planner
from txclf.data.sampler import Int32s, Ints

GRID = [
    (rows, batch_size, window)
    for rows, batch_size, window in product([1, 2, 7, 30, 101, 256], [1, 2, 5, 16, 30], [1, 3, 32])
    if batch_size <= rows
]


# -------------------------------------------------------------------------------------------------------------- epochs


@pytest.mark.parametrize(("rows", "batch_size", "window"), GRID)
def test_window_batches_each_row_at_most_once(rows: int, batch_size: int, window: int) -> None:
    lengths = lengths_of(rows)
    plan = planner.window_batches(lengths, batch_size, bucket_batches=window, seed=1, epoch=2)
    assert plan.shape == (planner.steps_per_epoch(rows, batch_size), batch_size)
    met = set(plan.ravel().tolist())
    assert len(met) == plan.size
    assert met <= set(range(rows))
    assert rows - len(met) <= batch_size - 1
    again = planner.window_batches(lengths, batch_size, bucket_batches=window, seed=1, epoch=2)
    assert (again == plan).all()


@pytest.mark.parametrize(("rows", "batch_size", "window"), GRID)
@pytest.mark.parametrize("micro_batches", [1, 2, 3])
def test_micro_batches_of_all_ranks_are_the_batch(rows: int, batch_size: int, window: int, micro_batches: int) -> None:
    plan = planner.window_batches(lengths_of(rows), batch_size, bucket_batches=window, seed=0, epoch=0)
    for step_rows, ranks in product(plan[:4], RANKS):
        parts = [
            planner.micro_batches(planner.rank_share(step_rows, rank, ranks), micro_batches) for rank in range(ranks)
        ]
        assert {len(own) for own in parts} == {micro_batches}
        together = np.concatenate([part for own in parts for part in own])
        assert sorted(together.tolist()) == sorted(step_rows.tolist())
        sizes = [len(part) for own in parts for part in own]
        assert max(sizes) - min(sizes) <= 1
        if batch_size >= ranks * micro_batches:
            assert min(sizes) >= 1


def test_rank_share_ranks_have_similar_lengths() -> None:
    lengths = lengths_of(5000)
    plan = planner.window_batches(lengths, 50, bucket_batches=32, seed=0, epoch=0)
    for step_rows in plan:
        longest = [lengths[planner.rank_share(step_rows, rank, 5)].max() for rank in range(5)]
        ordered = np.sort(lengths[step_rows])
        assert min(longest) >= ordered[-5]


def test_micro_batches_have_similar_lengths() -> None:
    lengths = lengths_of(600)
    (step_rows,) = planner.window_batches(lengths, 600, bucket_batches=1, seed=0, epoch=0)
    for parts in (planner.micro_batches(planner.rank_share(step_rows, rank, 2), 3) for rank in range(2)):
        assert all(lengths[one].max() <= lengths[two].min() for one, two in pairwise(parts))


def test_window_batches_other_epoch_leaves_out_other_rows() -> None:
    lengths = lengths_of(25)
    left = {
        frozenset(
            set(range(25))
            - set(planner.window_batches(lengths, 10, bucket_batches=2, seed=0, epoch=epoch).ravel().tolist())
        )
        for epoch in range(20)
    }
    assert {len(rows) for rows in left} == {5}
    assert len(left) > 15
    assert frozenset.union(*left) == set(range(25))


@pytest.mark.parametrize("window", [1, 4, 100])
def test_window_batches_order_depends_on_seed_and_epoch(window: int) -> None:
    lengths = lengths_of(400)
    plans = [
        planner.window_batches(lengths, 8, bucket_batches=window, seed=seed, epoch=epoch)
        for seed, epoch in product(range(3), range(3))
    ]
    assert len({plan.tobytes() for plan in plans}) == 9
    if window < 100:  # where a window holds all rows, the few longest meet each time
        groups = [{frozenset(rows) for rows in plan.tolist()} for plan in plans]
        assert all(not one & two for number, one in enumerate(groups) for two in groups[:number])


def test_window_batches_bucket_is_not_in_order_of_length() -> None:
    lengths = lengths_of(3200)
    plan = planner.window_batches(lengths, 10, bucket_batches=32, seed=0, epoch=0)
    means = lengths[plan].mean(axis=1).reshape(10, 32)
    assert all(abs(np.corrcoef(window, np.arange(32))[0, 1]) < 0.6 for window in means)
    assert abs(np.corrcoef(means.ravel(), np.arange(320))[0, 1]) < 0.2


def test_window_batches_orders_are_pinned() -> None:
    plan = planner.window_batches(np.arange(12) % 5, 4, bucket_batches=2, seed=3, epoch=1)
    assert plan.tolist() == [[0, 5, 10, 11], [1, 2, 7, 4], [6, 8, 3, 9]]


# -------------------------------------------------------------------------------------------------------------- padding


# ------------------------------------------------------------------------------------------------------ balanced epochs


def labels_of(rows: int, shares: Sequence[float], seed: int = 0) -> planner.Int32s:
    return np.random.default_rng(seed).choice(len(shares), rows, p=shares).astype(np.int32)


SHARES = [[1.0], [0.5, 0.5], [0.97, 0.03], [0.7, 0.2, 0.0, 0.1], [0.25] * 4]


@pytest.mark.parametrize(("rows", "batch_size", "window"), GRID)
@pytest.mark.parametrize("shares", SHARES)
def test_window_batches_balanced_classes_come_equally_often(
    rows: int, batch_size: int, window: int, shares: list[float]
) -> None:
    lengths, labels = lengths_of(rows), labels_of(rows, shares)
    plan = planner.window_batches(lengths, batch_size, bucket_batches=window, seed=1, epoch=2, labels=labels)
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
    again = planner.window_batches(lengths, batch_size, bucket_batches=window, seed=1, epoch=2, labels=labels)
    assert (again == plan).all()


def test_window_batches_balanced_epochs_reach_all_rows() -> None:
    lengths, labels = lengths_of(400), labels_of(400, [0.9, 0.1])
    plans = [
        planner.window_batches(lengths, 16, bucket_batches=4, seed=seed, epoch=epoch, labels=labels)
        for seed, epoch in product(range(2), range(8))
    ]
    assert len({plan.tobytes() for plan in plans}) == 16
    assert len(np.unique(np.concatenate(plans[:8]))) == 400
    # The classes are spread over the epoch, not only equal over it.
    for plan in plans:
        halves = [labels[half].mean() for half in np.array_split(plan.ravel(), 2)]
        assert halves == pytest.approx([0.5, 0.5], abs=0.1)


def _balanced_order_by_class(labels: Int32s, size: int, generator: np.random.Generator) -> tuple[Ints, int]:
    """Return what `balanced_order` returns, by one pass over the rows per class."""
    classes, counts = np.unique(labels, return_counts=True)
    shares = np.full(len(classes), size // len(classes))
    shares[generator.permutation(len(classes))[: size % len(classes)]] += 1
    rows, keys = [], []
    for label, share in zip(classes, shares, strict=True):
        rows.append(np.resize(generator.permutation(np.flatnonzero(labels == label)), share))
        keys.append((np.arange(share) + generator.random(share)) / max(1, share))
    order: Ints = np.concatenate(rows)[np.argsort(np.concatenate(keys), kind="stable")]
    return order, int(counts.min()) * len(classes)


@pytest.mark.parametrize(("rows", "classes"), [(1, 1), (7, 3), (500, 4), (500, 300), (20_000, 50)])
@pytest.mark.parametrize("share", [0.3, 1.0, 2.5])
def test_balanced_order_equals_one_pass_per_class(rows: int, classes: int, share: float) -> None:
    for seed in range(3):
        draws = np.random.default_rng([rows, classes, seed])
        labels = (classes * draws.random(rows) ** 3).astype(np.int32) * 2  # skewed, with gaps between the ids
        found = planner.balanced_order(labels, max(1, int(rows * share)), np.random.default_rng(seed))
        wanted = _balanced_order_by_class(labels, max(1, int(rows * share)), np.random.default_rng(seed))
        assert (found[0] == wanted[0]).all()
        assert found[1] == wanted[1]


def test_window_batches_balanced_copies_are_in_different_batches() -> None:
    lengths, labels = lengths_of(2000), labels_of(2000, [0.95, 0.05])
    plan = planner.window_batches(lengths, 32, bucket_batches=32, seed=0, epoch=0, labels=labels)
    assert np.bincount(plan.ravel()).max() >= 9
    twice = sum(len(rows) - len(np.unique(rows)) for rows in plan)
    # A third of the places would be copies if windows were 32 batches all the same.
    assert twice / plan.size < 0.005
    # Within the window, batches are still of neighbouring lengths.
    spread = np.mean([lengths[rows].std() for rows in plan])
    mixed = np.mean(
        [
            lengths[rows].std()
            for rows in planner.window_batches(lengths, 32, bucket_batches=1, seed=0, epoch=0, labels=labels)
        ]
    )
    assert spread < mixed / 2


def test_window_batches_larger_buckets_have_less_padding() -> None:
    lengths = lengths_of(4000)
    share = [
        padding_share(lengths, planner.window_batches(lengths, 32, bucket_batches=window, seed=0, epoch=0), ranks=2)
        for window in (1, 4, 32, 125)
    ]
    assert share[0] > 0.6
    assert all(more < less for less, more in pairwise(share))
    assert share[2] < 0.15
    assert share[3] < 0.05


def test_window_batches_of_each_window_have_their_own_draw() -> None:
    lengths = lengths_of(64)
    plans = [planner.window_batches(lengths, 8, bucket_batches=4, seed=3, epoch=1, window=window) for window in (0, 1)]
    assert (plans[0] != plans[1]).any()
    # The first window draws from (seed, epoch) alone.
    order = np.random.Generator(np.random.PCG64([3, 1])).permutation(64)
    assert set(plans[0][:4].ravel().tolist()) == set(order[:32].tolist())


# -------------------------------------------------------------------------------------------------------------- scoring


@pytest.mark.parametrize("rows", [0, 1, 2, 4, 5, 64, 101])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_scoring_batches_each_row_once_longest_first(rows: int, batch_size: int) -> None:
    lengths = lengths_of(rows)
    batches = list(planner.scoring_batches(lengths, batch_size))
    order = [row for batch in batches for row in batch.tolist()]
    assert sorted(order) == list(range(rows))
    assert lengths[order].tolist() == sorted(lengths.tolist(), reverse=True)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert all(1 <= len(batch) <= batch_size for batch in batches)

"""Rows of tokens to padded tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.helpers.lengths import lengths_of
from txclf.data import batches, sampler
from txclf.data.batches import TokenRows
from txclf.data.sampler import Layout

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
def test_batch_rows_are_gathered_and_padded(shape: str) -> None:
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


@pytest.mark.parametrize(("multiple", "longest"), [(8, None), (8, 1000), (16, 20), (1, 5)])
def test_batch_is_padded_to_a_multiple_but_not_beyond_the_model(multiple: int, longest: int | None) -> None:
    rows, plain = TokenRows([WHOLE], layout=Layout(multiple=multiple, longest=longest)), TokenRows([WHOLE])
    for picked in (np.array([0]), np.array([3, 5]), np.arange(len(LISTS))):
        batch, expected = rows.batch(picked), plain.batch(picked)
        length, width = expected["input_ids"].shape[1], batch["input_ids"].shape[1]
        assert width >= length
        assert width % multiple == 0 or width == max(length, longest or 0)
        assert width - length < multiple
        assert torch.equal(batch["input_ids"][:, :length], expected["input_ids"])
        assert not batch["input_ids"][:, length:].any()
        if width > length:
            before = (
                expected["mask"] if expected["mask"] is not None else torch.ones(len(picked), length, dtype=torch.bool)
            )
            assert batch["mask"] is not None
            assert torch.equal(batch["mask"][:, :length], before)
            assert not batch["mask"][:, length:].any()
        assert batch["num_tokens"] == expected["num_tokens"]


def test_batch_tensors_have_their_types() -> None:
    batch = TokenRows([WHOLE]).batch(np.array([0, 1]))
    assert batch["mask"] is not None
    found = [tensor.dtype for tensor in (batch["input_ids"], batch["mask"], batch["labels"])]
    assert found == [torch.int64, torch.bool, torch.int64]
    assert type(batch["num_tokens"]) is int


@pytest.mark.parametrize("tables", [[], [WHOLE.slice(0, 0)], [WHOLE.slice(4, 0), WHOLE.slice(9, 0)]])
def test_token_rows_without_tables_is_empty(tables: list[pa.Table]) -> None:
    rows = TokenRows(tables)
    assert len(rows) == 0
    assert rows.labels.tolist() == rows.starts.tolist() == []


def test_token_rows_single_chunk_is_not_copied() -> None:
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
    """Return 200 rows whose tokens are consecutive numbers, so that a token identifies its position."""
    lengths = lengths_of(200)
    ends = np.cumsum(lengths).tolist()
    lists = [list(range(end - length, end)) for end, length in zip(ends, lengths.tolist(), strict=True)]
    return TokenRows([make_table(lists, [0] * 200)])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_pad_token_dropout_keeps_the_order_of_tokens(long_rows: TokenRows, share: float) -> None:
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


def test_pad_token_dropout_depends_on_the_key_not_the_batch(long_rows: TokenRows) -> None:
    together = rows_of(long_rows.batch(np.arange(200), 0.3, key=1))
    for part in (np.array([7]), np.array([199, 0, 7]), np.arange(50, 100)):
        assert rows_of(long_rows.batch(part, 0.3, key=1)) == [together[row] for row in part]
    other = rows_of(long_rows.batch(np.arange(200), 0.3, key=2))
    assert sum(one != two for one, two in zip(together, other, strict=True)) > 150


def test_pad_token_dropout_keeps_a_single_token() -> None:
    rows = TokenRows([make_table([[number] for number in range(50)], [0] * 50)])
    assert rows_of(rows.batch(np.arange(50), 0.9, key=0)) == [[number] for number in range(50)]


# ------------------------------------------------------------------------------------------------- windows and segments


@pytest.mark.parametrize(("window", "overlap"), [(1, 0), (4, 0), (4, 1), (4, 3), (50, 10)])
def test_layout_windows_cover_a_row_with_overlap(window: int, overlap: int) -> None:
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


def test_pad_windows_do_not_depend_on_other_rows(long_rows: TokenRows) -> None:
    rows = TokenRows([], layout=Layout(6, 2))
    rows.numbers = long_rows.numbers
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


def test_scoring_batches_costs_bound_the_sequences() -> None:
    lengths = lengths_of(300)
    costs = Layout(5, 1).counts(lengths)
    found = list(sampler.scoring_batches(lengths, 8, costs))
    assert sorted(np.concatenate(found).tolist()) == list(range(300))
    assert all(costs[part].sum() <= 8 or len(part) == 1 for part in found)


def test_pad_segments_are_the_columns_of_the_tokens() -> None:
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


@pytest.mark.parametrize("part_tokens", [1, 50, 10**6])
def test_kept_lengths_equal_those_of_pad(
    long_rows: TokenRows, monkeypatch: pytest.MonkeyPatch, part_tokens: int
) -> None:
    monkeypatch.setattr(batches, "CHUNK_TOKENS", part_tokens)
    lengths = long_rows.kept_lengths(0.3, key=5)
    for row in range(len(long_rows)):
        assert lengths[row] == long_rows.pad(np.array([row]), 0.3, key=5).num_tokens
    assert (long_rows.kept_lengths(0.999, key=5) == 1).all()
    assert TokenRows([]).kept_lengths(0.3, key=5).tolist() == []


def test_mask_depends_on_the_row_and_not_on_the_batch() -> None:
    table = pa.table({"input_ids": [[5, 6, 7, 8] * 5, [9] * 7, [5, 6] * 30], "label": pa.array([0, 1, 0], pa.int32())})
    table = table.append_column("number", pa.array([10, 11, 12]))
    whole = TokenRows([table]).mask(0.3, key=7)
    assert 0.15 < float(np.mean(whole.values < 0)) < 0.45
    plain = TokenRows([table])
    np.testing.assert_array_equal(np.where(whole.values < 0, ~whole.values, whole.values), plain.values)
    part = TokenRows([table.take([2, 0])]).mask(0.3, key=7)
    ids = part.batch(np.array([0, 1]))["input_ids"]
    expected = whole.batch(np.array([2, 0]))["input_ids"]
    np.testing.assert_array_equal(ids.numpy(), expected.numpy())
    assert part.step_size(np.array([0, 1])) == int((expected < 0).sum())
    assert (TokenRows([table]).mask(0.3, key=8).values != whole.values).any()


def test_mask_spares_the_separator_of_text_columns() -> None:
    layout = Layout(separator=3)
    table = pa.table({"input_ids": [[5, 3, 6, 3] * 50], "label": pa.array([0], pa.int32())})
    rows = TokenRows([table], layout=layout).mask(0.9, key=1)
    assert (rows.values == 3).sum() == 100
    assert (rows.values < 0).sum() > 70

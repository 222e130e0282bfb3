"""Rows of different lengths in one flat array."""

from __future__ import annotations

import numpy as np
import pytest

from txclf.core.ragged import concat_ranges, flatten


@pytest.mark.parametrize("rows", [[], [[]], [[1, 2], [], [3]], [[7] * 5, [8]]])
def test_flatten_returns_values_and_lengths(rows: list[list[int]]) -> None:
    values, lengths = flatten(rows)
    assert values.tolist() == [value for row in rows for value in row]
    assert lengths.tolist() == [len(row) for row in rows]
    assert (str(values.dtype), str(lengths.dtype)) == ("int32", "int64")


@pytest.mark.parametrize("ranges", [[], [(0, 0)], [(3, 2), (0, 0), (5, 1), (0, 4)]])
def test_concat_ranges_equals_python_ranges(ranges: list[tuple[int, int]]) -> None:
    starts, lengths = (np.array([pair[i] for pair in ranges], np.int64) for i in (0, 1))
    expected = [number for start, length in ranges for number in range(start, start + length)]
    assert concat_ranges(starts, lengths).tolist() == expected


def test_concat_ranges_picks_rows_of_a_flat_array() -> None:
    values, lengths = flatten([[1, 2], [3], [4, 5, 6]])
    starts = np.cumsum(lengths) - lengths
    rows = np.array([2, 0])
    assert values[concat_ranges(starts[rows], lengths[rows])].tolist() == [4, 5, 6, 1, 2]

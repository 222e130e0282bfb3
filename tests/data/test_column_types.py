"""Types that hold the values of several columns, and values that a type would change."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from txclf.data import column_types

INT8, INT32, FLOAT = pa.int8(), pa.int32(), pa.float32()
BERLIN = pa.timestamp("s", "Europe/Berlin")


@pytest.mark.parametrize(
    ("first", "second", "wide"),
    [
        (INT8, pa.int64(), pa.int64()),
        (pa.uint8(), INT8, pa.int16()),
        (pa.uint64(), INT8, None),
        (FLOAT, pa.float64(), pa.float64()),
        (INT32, FLOAT, pa.float64()),
        (pa.bool_(), INT8, None),
        (pa.string(), pa.large_string(), pa.large_string()),
        (pa.string(), pa.binary(), None),
        (pa.binary(2), pa.binary(3), pa.large_binary()),
        (pa.date32(), pa.date64(), pa.date64()),
        (pa.date32(), pa.timestamp("us"), None),
        (pa.timestamp("s"), pa.timestamp("ns"), pa.timestamp("ns")),
        (pa.timestamp("s"), BERLIN, None),
        (BERLIN, pa.timestamp("s", "UTC"), None),
        (pa.time32("s"), pa.time64("us"), pa.time64("us")),
        (pa.duration("ms"), pa.duration("s"), pa.duration("ms")),
        (pa.decimal128(5, 1), pa.decimal128(5, 3), pa.decimal128(7, 3)),
        (pa.decimal128(38, 0), pa.decimal128(38, 2), pa.decimal256(40, 2)),
        (pa.decimal128(5, 1), FLOAT, None),
        (pa.dictionary(INT8, pa.string()), pa.string(), pa.string()),
        (pa.list_(INT8), pa.large_list(FLOAT), pa.large_list(pa.float64())),
        (pa.list_(INT8, 2), pa.list_(INT8, 3), pa.list_(INT8)),
        (pa.list_(INT8), INT8, None),
        (pa.struct({"a": INT8}), pa.struct({"b": FLOAT, "a": INT32}), pa.struct({"a": INT32, "b": FLOAT})),
        (pa.map_(pa.string(), INT8), pa.map_(pa.string(), INT32), pa.map_(pa.string(), INT32)),
        (pa.uuid(), pa.string(), None),
        (pa.null(), pa.list_(INT8), pa.list_(INT8)),
    ],
)
def test_common_is_a_type_that_holds_both(first: pa.DataType, second: pa.DataType, wide: pa.DataType | None) -> None:
    assert column_types.common(first, second) == wide
    assert (column_types.common(second, first) is None) == (wide is None)
    assert column_types.common(first, first) == first


def test_settled_nulls_are_text_and_dictionaries_have_wide_indices() -> None:
    assert column_types.settled(pa.null()) == pa.string()
    assert column_types.settled(pa.dictionary(INT8, pa.string())) == pa.dictionary(INT32, pa.string())
    assert column_types.settled(INT8) == INT8


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1.5, True], None),
        ([[1.5, True]], None),
        ([[0.75, 2]], pa.list_(pa.int64())),
        ([0.75], pa.int64()),
        ([1.1], FLOAT),
        ([{"a": 1, "b": 2}], pa.struct({"a": pa.int64()})),
        ([datetime.datetime(2020, 1, 1, 5)], pa.date32()),
        (["a", b"a"], None),
    ],
)
def test_array_value_that_would_change_raises(values: list[Any], kind: pa.DataType | None) -> None:
    with pytest.raises(ValueError, match="without a change"):
        column_types.array(values, kind)


def test_array_values_that_fit_are_kept() -> None:
    values = [Decimal("1.50"), Decimal("2")], [b"\xff", None], [datetime.datetime(2020, 1, 1, 5)], [1, 2.5, None]
    for each in values:
        assert column_types.array(each).to_pylist() == each
    assert column_types.array([{"a": 1}, {"b": 2}]).to_pylist() == [{"a": 1, "b": None}, {"a": None, "b": 2}]
    assert str(column_types.array([1, float("nan")]).to_pylist()) == "[1.0, nan]"

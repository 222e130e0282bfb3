"""Types of columns that come from several files or chunks: the type that holds all their values, or none.

A value is never changed: `common` widens types only, and `array` refuses values that would not come back. Arrow's own
`unify_schemas` with permissive promotion does change some: text to bytes, decimals to floats, uint64 to int64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from pyarrow import types as kinds

UNITS = ("s", "ms", "us", "ns")
PLAIN = {pa.string(): str, pa.large_string(): str, pa.int64(): int, pa.float64(): float, pa.bool_(): bool}
"""Types that hold every value of a Python type; Arrow itself refuses integers that are too large."""


def common(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    """Return the narrowest type that holds the values of both types, or None.

    A number is no boolean, a date no time, text no bytes, and times of different zones differ. Integers and floats
    become float64; converting an integer that float64 cannot hold raises an error of Arrow.
    """
    if first.equals(second):
        return first
    for one, other in ((first, second), (second, first)):
        if kinds.is_null(one):
            return other
        if kinds.is_dictionary(one):
            return common(one.value_type, other)
    for rule in (_number, _decimal, _text, _bytes, _time, _list, _struct, _map):
        if (found := rule(first, second)) is not None:
            return found
    return None


def settled(kind: pa.DataType) -> pa.DataType:
    """Return the type of a finished column: text where it has only nulls, and wide indices of a dictionary."""
    if kinds.is_null(kind):
        return pa.string()
    if kinds.is_dictionary(kind):
        return pa.dictionary(pa.int32(), kind.value_type, kind.ordered)
    if kinds.is_list(kind):
        return pa.list_(settled(kind.value_type))
    if kinds.is_struct(kind):
        return pa.struct([(field.name, settled(field.type)) for field in kind])
    return kind


def _number(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    both = (first, second)
    if all(map(kinds.is_integer, both)):
        signed = [kind for kind in both if kinds.is_signed_integer(kind)]
        if len(signed) != 1:
            return max(both, key=lambda kind: kind.bit_width)
        unsigned = first if second is signed[0] else second
        width = max(signed[0].bit_width, 2 * unsigned.bit_width)
        return {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}.get(width)
    if all(map(kinds.is_floating, both)):
        return max(both, key=lambda kind: kind.bit_width)
    if all(kinds.is_integer(kind) or kinds.is_floating(kind) for kind in both):
        return pa.float64()
    return None


def _decimal(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    if not (kinds.is_decimal(first) and kinds.is_decimal(second)):
        return None
    scale = max(first.scale, second.scale)
    digits = max(first.precision - first.scale, second.precision - second.scale) + scale
    return pa.decimal128(digits, scale) if digits <= 38 else pa.decimal256(digits, scale) if digits <= 76 else None


def _text(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    return pa.large_string() if all(map(_is_text, (first, second))) else None


def _is_text(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (kinds.is_string, kinds.is_large_string, kinds.is_string_view))


def _bytes(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    tests = (kinds.is_binary, kinds.is_large_binary, kinds.is_fixed_size_binary, kinds.is_binary_view)
    return pa.large_binary() if all(any(test(kind) for test in tests) for kind in (first, second)) else None


def _time(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    both = (first, second)
    if all(map(kinds.is_date, both)):
        return pa.date64()
    if all(map(kinds.is_timestamp, both)) and first.tz == second.tz:
        return pa.timestamp(_finer(first, second), first.tz)
    if all(map(kinds.is_duration, both)):
        return pa.duration(_finer(first, second))
    if all(map(kinds.is_time, both)):
        unit = _finer(first, second)
        return pa.time32(unit) if unit in ("s", "ms") else pa.time64(unit)
    return None


def _finer(first: pa.DataType, second: pa.DataType) -> str:
    return max(str(first.unit), str(second.unit), key=UNITS.index)


def _list(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    tests = (kinds.is_list, kinds.is_large_list, kinds.is_fixed_size_list, kinds.is_list_view, kinds.is_large_list_view)
    if not all(any(test(kind) for test in tests) for kind in (first, second)):
        return None
    item = common(first.value_type, second.value_type)
    if item is None:
        return None
    is_large = any(kinds.is_large_list(kind) or kinds.is_large_list_view(kind) for kind in (first, second))
    return pa.large_list(item) if is_large else pa.list_(item)


def _struct(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    if not (kinds.is_struct(first) and kinds.is_struct(second)):
        return None
    fields = {field.name: field.type for field in first}
    if len(fields) < first.num_fields or len({field.name for field in second}) < second.num_fields:
        return None  # two fields of one name cannot be told apart
    for field in second:
        kind = common(fields.get(field.name, pa.null()), field.type)
        if kind is None:
            return None
        fields[field.name] = kind
    return pa.struct(fields.items())


def _map(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    if not (kinds.is_map(first) and kinds.is_map(second)):
        return None
    key, item = common(first.key_type, second.key_type), common(first.item_type, second.item_type)
    return None if key is None or item is None else pa.map_(key, item)


def array(values: Sequence[Any], kind: pa.DataType | None = None) -> pa.Array:
    """Return Python values as an array of a type; None infers it from all values.

    Raises an error of Arrow or `OverflowError` for values that do not fit the type, `ValueError` for one that the array
    would change: Arrow by itself turns true to 1.0, 0.75 to 0 in a list of integers, and drops unknown keys.
    """
    found = pa.array(values, kind)
    if set(map(type, values)) <= {PLAIN.get(found.type), type(None)}:
        return found
    for number, (value, written) in enumerate(zip(values, found.to_pylist(), strict=True)):
        if not _is_same(value, written):
            raise ValueError(f"value {number + 1:,} cannot be stored as {found.type} without a change")
    return found


def _is_same(first: Any, second: Any) -> bool:
    """Compare values of any depth. A missing key of an object is the same as null, 2 is the same as 2.0."""
    if isinstance(first, dict) and isinstance(second, dict):
        return all(_is_same(first.get(key), second.get(key)) for key in first.keys() | second.keys())
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(_is_same, first, second))
    if isinstance(first, float) and math.isnan(first):
        return isinstance(second, float) and math.isnan(second)
    if {type(first), type(second)} == {int, float}:
        return bool(first == second)
    return type(first) is type(second) and bool(first == second)

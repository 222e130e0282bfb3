"""Labels of file cells, and tensors of label sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from txclf.data.labels import NONE, LabelSets, label_sets, targets

SETS = [[2], [], [0, 1, 2], [1], [], [0, 2]]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("joy", ("joy",)),
        (" joy ; anger ", ("anger", "joy")),
        ("joy;joy; joy", ("joy",)),
        ("joy;;anger;", ("anger", "joy")),
        ("a, b;c", ("a, b", "c")),
        ("", ()),
        ("  ", ()),
        (" ; ", ()),
        (None, ()),
        (float("nan"), ()),
        ([], ()),
        (["joy", "anger", "joy "], ("anger", "joy")),
        (["a;b"], ("a;b",)),
        ([1, 2.0, True], ("1", "2", "true")),
        (3, ("3",)),
        (3.0, ("3",)),
        (False, ("false",)),
    ],
)
def test_label_sets_cell_holds_any_number_of_labels(value: Any, expected: tuple[str, ...]) -> None:
    reasons: dict[int, str] = {}
    assert label_sets([value, "x"], "tags", ";", set(), reasons) == [expected, ("x",)]
    assert not reasons


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (["joy", None], "`tags` holds a label that is missing or blank"),
        (["joy", " "], "`tags` holds a label that is missing or blank"),
        ([["joy"]], "`tags`: found list, expected strings, integers or booleans in it"),
        ([{"name": "joy"}], "`tags`: found dict, expected strings, integers or booleans in it"),
        ({"joy": 1}, "`tags`: found dict, expected a list of strings, or one string"),
        ("['joy', 'anger']", "`tags` is a list written as text. Join its labels by `;` instead"),
        (" [] ", "`tags` is a list written as text. Join its labels by `;` instead"),
    ],
)
def test_label_sets_invalid_cell_has_a_reason(value: Any, reason: str) -> None:
    reasons: dict[int, str] = {}
    label_sets(["a", value, "b"], "tags", ";", set(), reasons)
    assert reasons == {1: reason}


def test_label_sets_record_the_types_of_labels() -> None:
    kinds: set[str] = set()
    label_sets([["a", 1], 2.0, 2.5, True], "tags", ",", kinds, {})
    assert kinds == {"string", "integer", "float", "fraction", "boolean"}


def make_label_sets() -> LabelSets:
    column = pa.array(SETS, pa.list_(pa.int32()))
    # In two tables, one of two chunks, one of a slice.
    first = pa.table({"labels": pa.chunked_array([column.slice(0, 1), column.slice(1, 2)])})
    return LabelSets.from_tables([first, pa.table({"labels": column}).slice(3, 3)])


@pytest.mark.parametrize("rows", [[0], [1], [1, 4], [2, 0], [5, 1, 2, 3], [4, 3, 2, 1, 0]])
def test_padded_rows_end_with_none(rows: list[int]) -> None:
    sets = make_label_sets()
    found = sets.padded(np.array(rows))
    longest = max(len(SETS[row]) for row in rows)
    assert found.tolist() == [SETS[row] + [NONE] * (longest - len(SETS[row])) for row in rows]
    wanted = [[float(label in SETS[row]) for label in range(4)] for row in rows]
    assert targets(found, 4).tolist() == wanted
    assert sets.matrix(4)[rows].astype(float).tolist() == wanted


def test_padded_without_rows_is_empty() -> None:
    nothing = LabelSets.from_tables([])
    assert len(nothing) == 0
    assert nothing.matrix(3).shape == (0, 3)
    assert nothing.padded(np.array([], np.int64)).shape == (0, 0)

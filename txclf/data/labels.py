"""Labels of file cells, and label sets of all rows of a multilabel task.

Shapes: B rows, K labels of the row with the most labels, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from txclf.core.ragged import concat_ranges
from txclf.core.text import shown

if TYPE_CHECKING:
    from torch import Tensor

Ints = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]

NONE = -1
"""Padding of the class ids of a row that has fewer labels than others."""


def single(values: list[Any], name: str, kinds: set[str], reasons: dict[int, str]) -> list[str]:
    """Return the label of each cell.

    Adds the reasons of cells without a label to `reasons`, by position, and the types of the labels to `kinds`.
    """
    if set(map(type, values)) == {str}:
        labels = list(map(str.strip, values))
        if all(labels):
            kinds.add("string")
            return labels
    labels = [""] * len(values)
    for i, value in enumerate(values):
        if _blank(value):
            reasons[i] = f"no label: `{shown(name)}` missing or blank"
        elif isinstance(value, str | bool | int | float):
            kind, labels[i] = _label(value)
            kinds.add(kind)
        else:
            reasons[i] = f"`{shown(name)}` is of type {type(value).__name__}, expected a string, integer or boolean"
    return labels


def class_names(schema: pa.Schema | None, name: str) -> list[str] | None:
    """Return the class names of a column that Hugging Face Datasets wrote to Parquet as `ClassLabel`, or None.

    They are in the metadata of the file. The values are numbers: the positions of the names, and -1 for no label.
    """
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][name] if schema else {}
        feature = feature[0] if isinstance(feature, list) else feature.get("feature", feature)
        names = feature["names"] if feature["_type"] == "ClassLabel" else None
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        return None
    return names if isinstance(names, list) and all(isinstance(one, str) for one in names) else None


def named(values: list[Any], names: Sequence[str]) -> list[Any]:
    """Return values with the positions of class names replaced by the names, also in lists, and -1 by None."""

    def name(value: Any) -> Any:
        if isinstance(value, list):
            return [name(item) for item in value]
        if not isinstance(value, int) or value >= len(names):
            return value
        return names[value] if value >= 0 else None

    return [name(value) for value in values]


def label_sets(
    values: list[Any], name: str, delimiter: str, kinds: set[str], reasons: dict[int, str]
) -> list[tuple[str, ...]]:
    """Return the sorted distinct labels of each cell: a list, or a string that is split at `delimiter`.

    A blank cell has no labels. `reasons` and `kinds` are filled as in `single`.
    """
    rows: list[tuple[str, ...]] = [()] * len(values)
    for i, value in enumerate(values):
        items = value if isinstance(value, list | tuple) else [] if _blank(value) else [value]
        if isinstance(value, str):
            if value.strip()[:1] + value.strip()[-1:] == "[]":
                reasons[i] = f"`{shown(name)}` is a list written as text. Join its labels by `{delimiter}` instead"
                continue
            items = [item for item in value.split(delimiter) if item.strip()]
        distinct: set[str] = set()
        for item in items:
            if _blank(item):
                reasons[i] = f"`{shown(name)}` holds a label that is missing or blank"
            elif isinstance(item, str | bool | int | float):
                kind, label = _label(item)
                kinds.add(kind)
                distinct.add(label)
            else:
                expected = (
                    "a list of strings, or one string" if item is value else "strings, integers or booleans in it"
                )
                reasons[i] = f"`{shown(name)}`: found {type(item).__name__}, expected {expected}"
        rows[i] = tuple(sorted(distinct))
    return rows


def _blank(value: object) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _label(value: str | bool | int | float) -> tuple[str, str]:
    if isinstance(value, str):
        return "string", value.strip()
    if isinstance(value, bool):
        return "boolean", str(value).lower()
    if isinstance(value, int):
        return "integer", str(value)
    # pandas turns a column of integers with a gap into floats
    return ("float", str(int(value))) if value.is_integer() else ("fraction", str(value))


class LabelSets:
    """Class ids of each row, stored one row after another."""

    def __init__(self, values: Int32s, lengths: Int32s) -> None:
        self.values, self.lengths = values, lengths
        self.starts: Ints = np.cumsum(lengths, dtype=np.int64) - lengths

    @classmethod
    def from_tables(cls, tables: Sequence[pa.Table]) -> Self:
        """Return the label sets of tables with a column `labels` (list<int32>)."""
        lists = [chunk for table in tables for chunk in table["labels"].chunks if len(chunk)]
        empty = np.empty(0, np.int32)
        values = [chunk.flatten().to_numpy() for chunk in lists]
        lengths = [np.diff(chunk.offsets.to_numpy()).astype(np.int32) for chunk in lists]
        return cls(np.concatenate([empty, *values]).astype(np.int32), np.concatenate([empty, *lengths]))

    def __len__(self) -> int:
        return len(self.lengths)

    def padded(self, rows: Ints) -> Tensor:
        """Return the class ids of rows as (B, K) int64, padded with `NONE`."""
        lengths = self.lengths[rows].astype(np.int64)
        inside = np.arange(int(lengths.max(initial=0))) < lengths[:, None]  # (B, K)
        numbers = np.full(inside.shape, NONE, np.int64)
        numbers[inside] = self.values[concat_ranges(self.starts[rows], lengths)]
        import torch  # not by the tasks that only read rows

        return torch.from_numpy(numbers)

    def matrix(self, classes: int) -> npt.NDArray[np.bool_]:
        """Return a mask (rows, C), True at the labels of each row."""
        targets = np.zeros((len(self), classes), np.bool_)
        targets[np.repeat(np.arange(len(self)), self.lengths), self.values] = True
        return targets


def targets(numbers: Tensor, classes: int) -> Tensor:
    """Return targets (B, C) float32 from class ids (B, K) of `LabelSets.padded`: 1 at the labels, otherwise 0."""
    import torch

    padded = torch.zeros(len(numbers), classes + 1, device=numbers.device)
    # Padding, -1, goes to the first column, which is removed.
    return padded.scatter_(1, numbers + 1, 1.0)[:, 1:]

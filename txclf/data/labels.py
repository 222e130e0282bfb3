"""Labels: read from a cell of a file, and, where a row has several, held for all rows at once.

Shapes: B rows, K labels of the row that has most, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

Ints = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]

NONE = -1
"""In place of a label, where a row has fewer than its neighbours."""


def single(values: list[Any], name: str, kinds: set[str], reasons: dict[int, str]) -> list[str]:
    """The label of each cell; `reasons` gets the places of those without one, `kinds` what labels were in the file."""
    if set(map(type, values)) == {str}:
        labels = list(map(str.strip, values))
        if all(labels):
            kinds.add("string")
            return labels
    labels = [""] * len(values)
    for i, value in enumerate(values):
        if _blank(value):
            reasons[i] = f"no label: `{name}` missing or blank"
        elif isinstance(value, str | bool | int | float):
            kind, labels[i] = _label(value)
            kinds.add(kind)
        else:
            reasons[i] = f"`{name}` is of type {type(value).__name__}, expected a string, integer or boolean"
    return labels


def several(
    values: list[Any], name: str, delimiter: str, kinds: set[str], reasons: dict[int, str]
) -> list[tuple[str, ...]]:
    """The distinct labels of each cell, sorted: of a list, or of a string cut at `delimiter`; a blank cell has none."""
    rows: list[tuple[str, ...]] = [()] * len(values)
    for i, value in enumerate(values):
        items = value if isinstance(value, list | tuple) else [] if _blank(value) else [value]
        if isinstance(value, str):
            if value.strip()[:1] + value.strip()[-1:] == "[]":
                reasons[i] = f"`{name}` is a list that was written as text: join its labels by `{delimiter}` instead"
                continue
            items = [part for part in value.split(delimiter) if part.strip()]
        found: set[str] = set()
        for item in items:
            if _blank(item):
                reasons[i] = f"`{name}` holds a label that is missing or blank"
            elif isinstance(item, str | bool | int | float):
                kind, label = _label(item)
                kinds.add(kind)
                found.add(label)
            else:
                wanted = "a list of strings, or one string" if item is value else "strings, integers or booleans in it"
                reasons[i] = f"`{name}`: found {type(item).__name__}, expected {wanted}"
        rows[i] = tuple(sorted(found))
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
    return "float", str(int(value)) if value.is_integer() else str(value)


class LabelSets:
    """The class numbers of each row, one row after the other."""

    def __init__(self, values: Int32s, lengths: Int32s) -> None:
        self.values, self.lengths = values, lengths
        self.starts: Ints = np.cumsum(lengths, dtype=np.int64) - lengths

    @classmethod
    def from_tables(cls, tables: Sequence[pa.Table]) -> Self:
        """Of tables with `labels` (list<int32>)."""
        lists = [chunk for table in tables for chunk in table["labels"].chunks if len(chunk)]
        nothing = np.empty(0, np.int32)
        values = [chunk.flatten().to_numpy() for chunk in lists]
        lengths = [np.diff(chunk.offsets.to_numpy()).astype(np.int32) for chunk in lists]
        return cls(np.concatenate([nothing, *values]).astype(np.int32), np.concatenate([nothing, *lengths]))

    def __len__(self) -> int:
        return len(self.lengths)

    def padded(self, rows: Ints) -> Tensor:
        """(B, K) int64, `NONE` behind the labels of a row that has fewer than K."""
        lengths = self.lengths[rows].astype(np.int64)
        inside = np.arange(int(lengths.max(initial=0))) < lengths[:, None]  # (B, K)
        ends = np.cumsum(lengths)
        within = np.arange(int(lengths.sum())) - np.repeat(ends - lengths, lengths)
        numbers = np.full(inside.shape, NONE, np.int64)
        numbers[inside] = self.values[np.repeat(self.starts[rows], lengths) + within]
        return torch.from_numpy(numbers)

    def matrix(self, classes: int) -> npt.NDArray[np.bool_]:
        """(rows, C), True at a row's labels."""
        targets = np.zeros((len(self), classes), np.bool_)
        targets[np.repeat(np.arange(len(self)), self.lengths), self.values] = True
        return targets


def targets(numbers: Tensor, classes: int) -> Tensor:
    """(B, C) float32, 1 at the class numbers of each row (B, K), as `LabelSets.padded` gives them."""
    found = torch.zeros(len(numbers), classes + 1, device=numbers.device)
    # Places without a number, -1, fall into the first column, which is cut off.
    return found.scatter_(1, numbers + 1, 1.0)[:, 1:]

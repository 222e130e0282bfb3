"""Which words mattered: each is left out in turn, and what the model says without it is compared (occlusion; Zeiler and
Fergus, arXiv:1311.2901; of texts: Li, Monroe and Jurafsky, arXiv:1612.08220).

A word's weight is how far the log-odds of the label fall without it: above 0 it speaks for the label, below 0 against.
Log-odds, for the probability of a sure answer hardly moves whatever is left out. Words that say the same thing cover
for each other: leaving out one of them changes little.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MOST = 64
"""Parts that are left out of a row, so that long texts do not cost more; they are several words each where there are
more words."""
LEAST = 1e-6
"""Probabilities closer to 0 or 1 count as this close."""
# Scripts that put no space between words are taken character by character.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\s\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")

Row = tuple[str, ...]
"""A text for each text column."""


class Part(NamedTuple):
    """Some words that follow each other."""

    column: int
    start: int
    end: int
    """Characters of the column's text."""


def parts(row: Row, most: int = MOST) -> list[Part]:
    """The words of a row of text columns, or runs of neighbours where there are more than `most`."""
    words = [Part(i, *found.span()) for i, text in enumerate(row) for found in WORD.finditer(text)]
    columns = [[word for word in words if word.column == i] for i in range(len(row))]
    most = max(most, sum(map(bool, columns)))  # a run does not reach over the end of a column
    size = max(-(-len(words) // most), 1)
    while sum(-(-len(column) // size) for column in columns) > most:
        size += 1
    return [
        Part(i, column[k].start, column[min(k + size, len(column)) - 1].end)
        for i, column in enumerate(columns)
        for k in range(0, len(column), size)
    ]


def without(row: Row, found: Sequence[Part]) -> list[Row]:
    """The row without each part. Empty where the only part is all there is: a model has nothing to say of no text."""
    if len(found) < 2:
        return []
    return [
        tuple(text[: part.start] + text[part.end :] if i == part.column else text for i, text in enumerate(row))
        for part in found
    ]


def weights(probability: float, others: npt.NDArray[np.float32]) -> list[float]:
    """How far the log-odds fall from `probability` to those without each part (parts,)."""
    clipped = np.clip(np.append(others.astype(np.float64), probability), LEAST, 1 - LEAST)
    odds = np.log(clipped) - np.log1p(-clipped)
    return [float(value) for value in odds[-1] - odds[:-1]]


def pieces(row: Row, found: Sequence[Part], given: Sequence[float | None]) -> list[list[tuple[str, float | None]]]:
    """Each column cut into texts with their weights, None for what lies between the parts; they add up to the row."""
    columns: list[list[tuple[str, float | None]]] = []
    for i, text in enumerate(row):
        column: list[tuple[str, float | None]] = []
        place = 0
        for part, weight in zip(found, given, strict=True):
            if part.column != i:
                continue
            if part.start > place:
                column.append((text[place : part.start], None))
            column.append((text[part.start : part.end], weight))
            place = part.end
        if place < len(text):
            column.append((text[place:], None))
        columns.append(column)
    return columns

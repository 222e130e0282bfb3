"""Word weights by occlusion: each word is left out in turn, and the predictions are compared.

The method is that of Zeiler and Fergus (arXiv:1311.2901), applied to texts by Li, Monroe and Jurafsky
(arXiv:1612.08220). The weight of a word is the drop in the log-odds of the label without it: positive if the word
supports the label, negative if it speaks against it. Log-odds are used because a confident probability hardly changes.
Redundant words mask each other: leaving out one of them changes little.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from txclf.core.text import escaped
from txclf.data.altered_texts import WORD
from txclf.inference.metadata import BundleMetadata

MAX_SPANS = 64
"""Maximum number of spans per row; it bounds the cost of long texts."""
MIN_PROBABILITY = 1e-30
"""Probabilities of a label, and of all others, are at least this."""

Row = tuple[str, ...]
"""One text per text column."""


class Span(NamedTuple):
    """Consecutive words of one text column."""

    column: int
    """Number of the column, from 0."""
    start: int
    """First character in the text of the column."""
    end: int
    """Character after the last one."""


class Explanation(NamedTuple):
    """Weights of the words of one row for a label."""

    label: str
    probability: float
    """Probability of `label` for the whole row."""
    columns: dict[str, list[tuple[str, float | None]]]
    """Text of each column, split into pieces with their weights: None between the words, and for a single word."""

    def weights(self) -> list[tuple[str, float]]:
        """Return the words with their weights, those that support the label most first."""
        words = [(text, weight) for column in self.columns.values() for text, weight in column if weight is not None]
        return sorted(words, key=lambda word: -word[1])

    def _repr_html_(self) -> str:
        """Return the texts for a notebook: green words support the label, red ones speak against it."""
        largest = max((abs(weight) for _, weight in self.weights()), default=0.0) or 1.0
        lines = [f"<b>{escape(escaped(self.label))}</b> {self.probability:.4f}"]
        for column in self.columns.values():
            pieces = []
            for text, weight in column:
                content = escape(escaped(text, kept="\n\t"))
                if weight:
                    colour = "0,128,0" if weight > 0 else "208,0,0"
                    style = f"background:rgba({colour},{abs(weight) / largest / 2:.2f})"
                    content = f'<span style="{style}" title="{weight:+.3f}">{content}</span>'
                pieces.append(content)
            lines.append(f'<span style="white-space:pre-wrap">{"".join(pieces)}</span>')
        return f"<div>{'<br>'.join(lines)}</div>"


def split_row(row: Row, max_spans: int = MAX_SPANS) -> list[Span]:
    """Split a row into its words, or into runs of consecutive words if it has more than `max_spans` words."""
    words = [Span(i, *match.span()) for i, text in enumerate(row) for match in WORD.finditer(text)]
    columns = [[word for word in words if word.column == i] for i in range(len(row))]
    max_spans = max(max_spans, sum(map(bool, columns)))  # a span never crosses the end of a column
    size = max(-(-len(words) // max_spans), 1)
    while sum(-(-len(column) // size) for column in columns) > max_spans:
        size += 1
    return [
        Span(i, column[k].start, column[min(k + size, len(column)) - 1].end)
        for i, column in enumerate(columns)
        for k in range(0, len(column), size)
    ]


def occluded_rows(row: Row, spans: Sequence[Span]) -> list[Row]:
    """Return one copy of the row per span, without that span and one of the spaces around it.

    Returns no row if there is one span only: a model cannot predict an empty text.
    """
    if len(spans) < 2:
        return []
    return [tuple(_without(text, span) if i == span.column else text for i, text in enumerate(row)) for span in spans]


def _without(text: str, span: Span) -> str:
    """Return a text without a span. Two spaces in a row would be another token than one."""
    before, after = text[: span.start], text[span.end :]
    if after[:1].isspace() and (not before or before[-1].isspace()):
        return before + after[1:]
    return before[:-1] if not after and before[-1:].isspace() else before + after


def weights(probabilities: npt.NDArray[np.floating[Any]], column: int, is_multilabel: bool) -> list[float]:
    """Return the drop in log-odds of a label from the whole row to the row without each span.

    `probabilities` (1 + spans, labels) are those of the whole row, then of the rows without a span.
    """
    values = probabilities.astype(np.float64)
    own = values[:, column]
    # Not 1 - own, of which nothing is left where the answer is certain.
    others = 1 - own if is_multilabel else np.delete(values, column, axis=1).sum(axis=1)
    odds = np.log(own.clip(MIN_PROBABILITY)) - np.log(others.clip(MIN_PROBABILITY))
    return [float(value) for value in odds[0] - odds[1:]]


def explanation(
    metadata: BundleMetadata,
    row: Row,
    spans: Sequence[Span],
    probabilities: npt.NDArray[np.floating[Any]],
    label: str | None,
) -> Explanation:
    """Return the weights of the words of a row for a label, by default the most probable one.

    `probabilities` (1 + spans, labels) are those of the whole row, then of the rows without a span.
    """
    column = int(probabilities[0].argmax()) if label is None else metadata.labels.index(label)
    found = weights(probabilities, column, metadata.task_spec.is_multilabel)
    texts = weighted_texts(row, spans, found or [None] * len(spans))
    columns = dict(zip(metadata.text_columns, texts, strict=True))
    return Explanation(metadata.labels[column], float(probabilities[0, column]), columns)


def weighted_texts(
    row: Row, spans: Sequence[Span], weights: Sequence[float | None]
) -> list[list[tuple[str, float | None]]]:
    """Split each column into texts with weights: None between the spans. The texts of a column add up to it."""
    columns: list[list[tuple[str, float | None]]] = []
    for i, text in enumerate(row):
        column: list[tuple[str, float | None]] = []
        position = 0
        for span, weight in zip(spans, weights, strict=True):
            if span.column != i:
                continue
            if span.start > position:
                column.append((text[position : span.start], None))
            column.append((text[span.start : span.end], weight))
            position = span.end
        if position < len(text):
            column.append((text[position:], None))
        columns.append(column)
    return columns

"""Word weights of the worst mistakes, and how far they are faithful to the model.

Weights are faithful if leaving out the words with the largest ones changes the prediction more than leaving out any
others (comprehensiveness, ERASER, arXiv:1911.03429).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from txclf.core.text import distinct
from txclf.inference.classifier import Classifier
from txclf.inference.occlusion import Explanation
from txclf.reports.content import Fidelity, Mistake

MAX_TEXT_CHARS = 700
"""Characters of a text that a page shows."""
LEFT_OUT = 0.2
"""Share of the words that are left out to measure fidelity."""
MIN_WORDS = 5
"""Words of a text from which on it counts for fidelity."""

Pieces = Sequence[tuple[str, float | None]]


def explained(
    classifier: Classifier,
    wrong: Sequence[Mistake],
    asked: Sequence[str],
    texts: Mapping[tuple[str, int], str],
    seconds: float,
) -> tuple[list[Mistake], Fidelity | None]:
    """Add word weights to the first mistakes, each for the label in `asked`, and return how faithful they are.

    `texts` has the whole text of each row by its file and number. No row is begun after `seconds`.
    """
    end = time.monotonic() + seconds
    found, explanations, names = list(wrong), list[Explanation](), distinct(classifier.labels)
    for number, (mistake, name) in enumerate(zip(wrong, asked, strict=False)):
        row = tuple(texts[mistake.file, mistake.row].split("\n"))  # shards join columns by line breaks
        if time.monotonic() > end:
            break
        if len(classifier.metadata.text_columns) == 1:
            row = ("\n".join(row),)
        elif len(row) != len(classifier.metadata.text_columns):
            continue  # a text has line breaks of its own
        explanation = classifier.explain(row, classifier.labels[names.index(name)])
        found[number] = replace(mistake, words=pieces(list(explanation.columns.values())))
        explanations.append(explanation)
    return found, fidelity(classifier, explanations)


def fidelity(classifier: Classifier, explanations: Sequence[Explanation]) -> Fidelity | None:
    """Return how much a probability falls without the words that weigh most, and without words at random.

    Return None if no text has `MIN_WORDS` words.
    """
    draw = np.random.default_rng(0)
    rows, before, columns = list[tuple[str, ...]](), list[float](), list[int]()
    for explanation in explanations:
        weights = [weight for column in explanation.columns.values() for _, weight in column if weight is not None]
        if len(weights) < MIN_WORDS:
            continue
        count = max(1, round(LEFT_OUT * len(weights)))
        strongest = np.argsort(-np.array(weights), kind="stable")[:count].tolist()
        rows += [_without(explanation, left_out) for left_out in (strongest, draw.permutation(len(weights))[:count])]
        before.append(explanation.probability)
        columns.append(classifier.labels.index(explanation.label))
    if not rows:
        return None
    after_N2 = classifier.probabilities(rows).reshape(len(before), 2, -1)[np.arange(len(before)), :, columns]
    strongest_drop, random_drop = (np.array(before)[:, None] - after_N2).mean(axis=0).tolist()
    return Fidelity(len(before), float(np.mean(before)), strongest_drop, random_drop)


def _without(explanation: Explanation, left_out: Collection[int]) -> tuple[str, ...]:
    """Return the texts of the columns without some words, by their number in the row."""
    texts, number = [], 0
    for column in explanation.columns.values():
        kept = []
        for text, weight in column:
            if weight is None or number not in left_out:
                kept.append(text)
            number += weight is not None
        texts.append(" ".join("".join(kept).split()))
    return tuple(texts)


def pieces(columns: Sequence[Pieces]) -> list[tuple[str, float | None]]:
    """Join the weighted words of all columns, and shorten them like the text."""
    words = list(columns[0])
    for column in columns[1:]:
        words += [("\n", None), *column]
    shown, left = list[tuple[str, float | None]](), MAX_TEXT_CHARS
    for text, weight in words:
        shown.append((text[:left], weight if weight is None else round(weight, 3)))
        left -= len(text)
        if left < 0:
            return [*shown, (" …", None)]
    return shown

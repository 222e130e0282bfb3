"""Scores of generated texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from torchmetrics.functional.text import sacre_bleu_score

CHRF_CHARACTERS, CHRF_BETA = 6, 2.0
"""Longest n-grams of chrF, and the weight of recall."""


def text_scores(outputs: Sequence[str], targets: Sequence[str]) -> dict[str, Any]:
    """Return the exact match (a share), BLEU and chrF (both in percent) of outputs against targets.

    BLEU is that of sacreBLEU, cased, with tokenizer 13a (Post, 2018); chrF follows Popović (2015).
    """
    pairs = [[target] for target in targets]
    exact = np.mean([output.split() == target.split() for output, target in zip(outputs, targets, strict=True)])
    return {
        "rows": len(outputs),
        "exact_match": float(exact),
        "bleu": 100 * float(sacre_bleu_score(outputs, pairs)),
        "chrf": 100 * chrf(outputs, targets),
    }


def chrf(outputs: Sequence[str], targets: Sequence[str]) -> float:
    """Return chrF2 of all rows together, as sacreBLEU does: F of the mean precision and recall of 1 to 6 characters.

    Blanks do not count. Recall weighs `CHRF_BETA` times as much as precision (Popović, 2015).
    """
    texts = [[*map(_without_blanks, row)] for row in zip(outputs, targets, strict=True)]
    precisions, recalls = list[float](), list[float]()
    for size in range(1, CHRF_CHARACTERS + 1):
        found = wanted = common = 0
        for output, target in texts:
            ours, theirs = _pieces(output, size), _pieces(target, size)
            if theirs:  # a target that is shorter says nothing about pieces of this size
                found, wanted, common = found + ours.total(), wanted + theirs.total(), common + (ours & theirs).total()
        if found and wanted:
            precisions.append(common / found)
            recalls.append(common / wanted)
    precision, recall = float(np.mean(precisions or [0.0])), float(np.mean(recalls or [0.0]))
    weight = CHRF_BETA**2
    return (1 + weight) * precision * recall / (weight * precision + recall) if precision + recall else 0.0


def _without_blanks(text: str) -> str:
    return "".join(text.split())


def _pieces(text: str, size: int) -> Counter[str]:
    return Counter(text[start : start + size] for start in range(len(text) - size + 1))

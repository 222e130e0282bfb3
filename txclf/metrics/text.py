"""Scores of generated texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torchmetrics.functional.text import chrf_score, sacre_bleu_score


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
        "chrf": 100 * float(torch.as_tensor(chrf_score(outputs, pairs, n_word_order=0))),
    }

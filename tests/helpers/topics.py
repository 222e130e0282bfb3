"""Texts whose topic follows from two of their words, and the logits of a network that half knows it."""

from __future__ import annotations

import random
from functools import cache

import numpy as np

from txclf.ngrams.fitting import Choice, choose
from txclf.ngrams.linear import Floats

TOPICS = {0: "goal match team score", 1: "bank market share price", 2: "cell gene protein virus"}


def make(rows: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Return texts with two words of their topic, and the topics."""
    draw = random.Random(seed)
    labels = [draw.randrange(3) for _ in range(rows)]
    words = ["the", "a", "of", "in", "on", "at", "to", "and", "it", "was"]
    texts = [" ".join(draw.choices(words, k=8) + draw.choices(TOPICS[label].split(), k=2)) for label in labels]
    return texts, np.array(labels)


TEXTS, LABELS = make(300)


def noisy(sharpness: float) -> Floats:
    """Return logits of a network that knows the topic as well as `sharpness` says."""
    draw = np.random.default_rng(0)
    logits: Floats = (sharpness * np.eye(3)[LABELS] + draw.normal(size=(300, 3))).astype(np.float32)
    return logits


@cache
def small_choice() -> Choice:
    """Return a linear model trained on the first half of the texts."""
    return choose(TEXTS[:150], LABELS[:150], [], LABELS[:0], num_labels=3)

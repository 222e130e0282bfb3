"""Altered copies of texts, which a teacher answers for its student (arXiv:1903.12136, section 4).

A model from scratch sees few of the texts that its language has. Altered copies show it what the teacher makes of other
words and of parts of sentences. They need not be good language, because the teacher answers each of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from random import Random

from txclf.core.words import CHINESE, joined

DROPPED = 0.1
"""Share of the words that are left out."""
REPLACED = 0.15
"""Share of the words that are replaced by another one."""
FITTING = 0.8
"""Share of the replacements that follow the same word elsewhere; the others are words of any place."""
CUT = 0.25
"""Share of the copies that are a part of the text, from a third of its words to all."""
JOINED = 0.1
"""Share of the copies whose second half is that of another text."""
MIN_WORDS = 4
"""Words from which on a copy is cut or joined."""

WORD = re.compile(rf"[{CHINESE}]|[^\s{CHINESE}]+")
"""A word. In Chinese and Japanese, each character is one."""


def altered(texts: Sequence[str], copies: int, draw: Random) -> Iterator[tuple[int, str]]:
    """Yield `copies` altered copies of each text, with the number of the text. Words are exchanged among the texts.

    A copy of a text without words is the text itself.
    """
    words = [WORD.findall(text) for text in texts]
    followers: dict[str, list[str]] = {}
    for text in words:
        for before, word in zip(["", *text], text, strict=False):
            followers.setdefault(before.lower(), []).append(word)
    everything = [word for text in words for word in text]
    for number, text in enumerate(words):
        for _ in range(copies):
            copy = _exchanged(text, followers, everything, draw)
            if len(copy) >= MIN_WORDS:
                copy = _rearranged(copy, words, draw)
            yield number, joined(copy) or texts[number]


def _exchanged(text: list[str], followers: dict[str, list[str]], everything: list[str], draw: Random) -> list[str]:
    """Return the words of a text, some of them left out or replaced."""
    copy = []
    for before, word in zip(["", *text], text, strict=False):
        chance = draw.random()
        if chance < DROPPED:
            continue
        if chance < DROPPED + REPLACED:
            word = draw.choice(followers[before.lower()] if draw.random() < FITTING else everything)
        copy.append(word)
    return copy


def _rearranged(copy: list[str], words: list[list[str]], draw: Random) -> list[str]:
    """Return a part of a copy, or its first half with the second half of another text, or the copy."""
    chance = draw.random()
    if chance < CUT:
        length = draw.randint(max(MIN_WORDS, len(copy) // 3), len(copy))
        start = draw.randint(0, len(copy) - length)
        return copy[start : start + length]
    if chance < CUT + JOINED:
        other = draw.choice(words)
        return [*copy[: len(copy) // 2], *other[len(other) // 2 :]]
    return copy

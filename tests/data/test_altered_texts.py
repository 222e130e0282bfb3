"""Altered copies of texts."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from txclf.data.altered_texts import altered

TEXTS = [f"word{i} is the name of number{i % 7} in list {i % 3}" for i in range(200)]


def test_copies_are_other_texts_of_the_same_words() -> None:
    copies = list(altered(TEXTS, 5, Random(0)))
    assert [number for number, _ in copies] == [number for number in range(200) for _ in range(5)]
    known = {word for text in TEXTS for word in text.split()}
    assert all(set(copy.split()) <= known for _, copy in copies)
    assert sum(copy != TEXTS[number] for number, copy in copies) / len(copies) > 0.6
    shared = [len(set(copy.split()) & set(TEXTS[number].split())) / len(set(copy.split())) for number, copy in copies]
    assert 0.75 < sum(shared) / len(shared) < 0.95
    lengths = Counter(len(copy.split()) for _, copy in copies)
    assert max(lengths) <= 12
    assert min(lengths) >= 3
    # A replacement mostly follows the same word elsewhere.
    after_of = Counter(
        after
        for _, copy in copies
        for before, after in zip(copy.split(), copy.split()[1:], strict=False)
        if before == "of"
    )
    assert sum(count for word, count in after_of.items() if word.startswith("number")) > 0.75 * after_of.total()


def test_copies_depend_on_the_seed_alone() -> None:
    one, two, other = (list(altered(TEXTS, 3, Random(seed))) for seed in (1, 1, 2))
    assert one == two
    assert one != other


@pytest.mark.parametrize("text", ["", "   ", "a", "!!", "one two"])
def test_short_texts_never_become_empty(text: str) -> None:
    assert {copy for _, copy in altered([text], 50, Random(0))} <= {
        text,
        *text.split(),
        "one one",
        "two two",
        "two one",
    }


def test_characters_of_scripts_without_spaces_are_words() -> None:
    texts = ["今天天气很好我们去公园", "明天会下雨请带雨伞出门"]
    copies = [copy for _, copy in altered(texts, 20, Random(0))]
    assert len(set(copies)) > 20
    assert all(copy and set(copy) <= {*"".join(texts)} for copy in copies)

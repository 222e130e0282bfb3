"""Near-duplicates: what is grouped, and what is not."""

from __future__ import annotations

import random

import numpy as np
import pytest

from txclf.auditing import near_duplicates
from txclf.auditing.near_duplicates import groups, normalized


def long_text(seed: int, words: int = 30) -> list[str]:
    draw = random.Random(seed)
    return [f"w{draw.randrange(500)}" for _ in range(words)]


def test_groups_join_texts_that_differ_in_a_word() -> None:
    first, second = long_text(1), long_text(2)
    changed = [*first[:10], "other", *first[11:]]
    found = groups([" ".join(words) for words in (first, second, changed, first, second[:15])])
    assert found[0] == found[2] == found[3]
    assert len(set(found.tolist())) == 3


def test_groups_of_many_texts_equal_those_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "CHUNK", 16)
    draw = random.Random(0)
    texts = []
    for seed in range(40):
        words = long_text(seed)
        for _ in range(3):
            places = draw.sample(range(30), draw.randint(0, 4))
            texts.append(" ".join("new" if place in places else word for place, word in enumerate(words)))
    sets = [set(text.split()) | set(zip(text.split(), text.split()[1:], strict=False)) for text in texts]
    limit = near_duplicates.SIMILARITY
    near = [[len(one & two) >= limit * len(one | two) for two in sets] for one in sets]
    reached = np.linalg.matrix_power(np.array(near, float), 3) > 0
    found = groups(texts)
    same = found[:, None] == found[None, :]
    assert same[np.array(near)].mean() > 0.99
    assert not same[~reached].any()


@pytest.mark.parametrize("texts", [[], [""], ["", "", "\u200b"], ["a", "a"], ["!", "?"]])
def test_groups_of_short_and_empty_texts(texts: list[str]) -> None:
    found = groups(texts)
    assert found.shape == (len(texts),)
    assert len(set(found.tolist())) == (1 if texts == ["a", "a"] else len(texts))


def test_normalized_texts_differ_in_words_only() -> None:
    assert normalized(" Straße\n ＡＢＣ ") == normalized("STRASSE abc") == "strasse abc"

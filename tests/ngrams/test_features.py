"""Counts of n-grams: those of scikit-learn, known keys, scripts without spaces, hostile texts."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer

from txclf.ngrams.features import Analyzer, count, is_characters, spans

TEXTS = ["Don't go, go away!", "", "a a a a", "go home   go", "東京都に行く 東京", "x" * 200]
TEXTS += ["\ud800 broken", "\x00 \u2028"]
BOTH = Analyzer(words=2, characters=(2, 4))


@pytest.mark.parametrize("texts", [["the cat sat", "the dog, the cat", "Cat"], ["aa bb", "", "bb aa bb aa"]])
def test_count_equals_the_counts_of_scikit_learn(texts: list[str]) -> None:
    words = CountVectorizer(ngram_range=(1, 3), token_pattern=r"\w+|[^\w\s]").fit_transform(texts)
    characters = CountVectorizer(ngram_range=(2, 5), analyzer="char_wb", token_pattern=None)
    pieces = [" ".join("".join(char if char.isalnum() else f" {char} " for char in text).split()) for text in texts]
    for expected, analyzer in [
        (words, Analyzer(words=3)),
        (characters.fit_transform(pieces), Analyzer(words=0, characters=(2, 5))),
    ]:
        found = count(texts, analyzer)
        assert found.matrix.shape == expected.shape
        for row in range(len(texts)):
            assert sorted(found.matrix[row].data) == sorted(expected[row].data)
        assert sorted(found.matrix.sum(axis=0).A1) == sorted(np.asarray(expected.sum(axis=0)).ravel())


def test_count_with_known_keys_gives_the_same_columns() -> None:
    whole = count(TEXTS, BOTH)
    assert (np.diff(whole.keys.astype(object)) > 0).all()
    some = whole.keys[::3]
    found = count(TEXTS, BOTH, some)
    assert np.array_equal(found.keys, some)
    assert (found.matrix != whole.matrix[:, ::3]).nnz == 0
    assert count(["nothing known"], Analyzer(words=1), np.empty(0, np.uint64)).matrix.shape == (1, 0)


@pytest.mark.parametrize("text", TEXTS)
def test_spans_are_the_counted_ngrams(text: str) -> None:
    counts = count([text], BOTH)
    expected = dict(zip(counts.keys.tolist(), counts.matrix.toarray()[0].astype(int).tolist(), strict=True))
    assert Counter(key for _, key in spans(text, BOTH)) == expected
    names: dict[int, set[str]] = {}
    for name, key in spans(text, BOTH):
        names.setdefault(key, set()).add(name)
    assert all(len(found) == 1 for found in names.values())


def test_count_many_chunks_and_case(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = count(TEXTS * 3, BOTH)
    monkeypatch.setattr("txclf.ngrams.features._ROWS", 5)
    parts = count(TEXTS * 3, BOTH)
    assert np.array_equal(whole.keys, parts.keys)
    assert (whole.matrix != parts.matrix).nnz == 0
    assert len(count(["A a"], Analyzer(words=1)).keys) == 1
    assert len(count(["A a"], Analyzer(words=1, lowercase=False)).keys) == 2


def test_count_does_not_depend_on_how_a_letter_is_composed() -> None:
    composed, decomposed = count(["Häuser"], BOTH), count(["Ha\u0308user"], BOTH)
    assert np.array_equal(composed.keys, decomposed.keys)
    assert [name for name, _ in spans("今天 好", Analyzer(words=2))] == ["今", "天", "好", "今天", "天好"]


def test_is_characters_tells_the_two_kinds_apart() -> None:
    assert not is_characters(count(TEXTS, Analyzer(words=3)).keys).any()
    assert is_characters(count(TEXTS, Analyzer(words=0, characters=(1, 3))).keys).all()


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=5))
def test_count_any_texts_do_not_depend_on_the_other_rows(texts: list[str]) -> None:
    whole = count(texts, BOTH)
    for row, text in enumerate(texts):
        alone = count([text], BOTH)
        found = whole.matrix[row]
        assert dict(zip(whole.keys[found.indices].tolist(), found.data.tolist(), strict=True)) == dict(
            zip(alone.keys.tolist(), alone.matrix.toarray()[0].tolist(), strict=True)
        )

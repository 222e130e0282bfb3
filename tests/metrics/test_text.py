"""Scores of generated texts."""

from __future__ import annotations

import pytest

from txclf.metrics.text import chrf, text_scores


def test_text_scores_equal_texts_are_perfect() -> None:
    texts = ["the quick brown fox jumps", "over the lazy dog again"]
    scores = text_scores(texts, texts)
    assert scores == {"rows": 2, "exact_match": 1.0, "bleu": pytest.approx(100), "chrf": pytest.approx(100)}


def test_text_scores_exact_match_ignores_white_space() -> None:
    scores = text_scores(["a  b", "a c"], ["a b", "a b"])
    assert scores["exact_match"] == 0.5


def test_text_scores_closer_output_scores_higher() -> None:
    targets = ["the quick brown fox jumps over the lazy dog"]
    near, far = (text_scores([text], targets) for text in ("the quick brown fox jumps over a dog", "some other words"))
    assert near["bleu"] > far["bleu"]
    assert near["chrf"] > far["chrf"]
    assert near["exact_match"] == far["exact_match"] == 0.0


@pytest.mark.parametrize(
    ("outputs", "targets", "expected"),
    [
        (["a b"], ["abc"], 5 * (7 / 12) / (4 + 7 / 12)),  # precision 1; recall 2/3 of one character, 1/2 of two
        (["abc", "xyz"], ["abc", "def"], 0.5),  # a row without a common character counts
        (["", "abc"], ["def", "abc"], 5 * 0.5 / (4 + 0.5)),
        (["ab", "abcdef"], ["a", "abcdef"], 5 * (47 / 48) / (4 * 47 / 48 + 1)),  # one character of 8 is too much
        (["x"], ["y"], 0.0),
        ([], [], 0.0),
    ],
)
def test_chrf_is_that_of_the_whole_corpus(outputs: list[str], targets: list[str], expected: float) -> None:
    assert chrf(outputs, targets) == pytest.approx(expected)

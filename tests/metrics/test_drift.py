"""Differences between known and new rows: of labels, lengths, vectors and words."""

from __future__ import annotations

import numpy as np
import pytest

from txclf.metrics import drift


def masks(*counts: int) -> np.ndarray:
    """Return rows with one label each (rows, labels), `counts` of each label."""
    return np.repeat(np.eye(len(counts), dtype=np.bool_), counts, axis=0)


def test_labels_distance_is_the_share_of_rows_that_would_have_to_change() -> None:
    found = drift.of_labels(masks(80, 20, 0), masks(50, 40, 10))
    assert found.value == pytest.approx(0.3)
    assert found.p_value < 0.001


@pytest.mark.parametrize(("known", "new"), [([30, 10], [3, 1]), ([5, 0], [7, 0]), ([0, 0], [3, 1])])
def test_labels_that_are_distributed_alike_or_unknown_do_not_differ(known: list[int], new: list[int]) -> None:
    assert drift.of_labels(masks(*known), masks(*new)).p_value > 0.9


def test_labels_that_are_drawn_alike_seldom_differ_although_many_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "PERMUTATIONS", 500)
    shares = 1 / np.arange(1, 78)
    random, found = np.random.default_rng(0), []
    for _ in range(60):
        before, after = (random.multinomial(rows, shares / shares.sum()) for rows in (1000, 50))
        found.append(drift.of_labels(masks(*before), masks(*after)).p_value)
    assert sum(p < 0.05 for p in found) <= 7  # 3 are expected; of the chi-squared test 11


def test_labels_of_several_a_row_count_by_row() -> None:
    known, new = np.ones((40, 4), np.bool_), np.ones((40, 4), np.bool_)
    known[:, 3], new[:, 2] = False, False
    assert drift.of_labels(known, new, is_multilabel=True) == (1.0, 1 / (drift.PERMUTATIONS + 1))
    # Labels that always go together are one row of evidence, not five.
    together = np.repeat(np.arange(40) < 20, 5).reshape(40, 5)
    fewer = np.repeat(np.arange(10) < 3, 5).reshape(10, 5)
    found = drift.of_labels(together, fewer, is_multilabel=True)
    assert found.value == pytest.approx(0.2)
    assert found.p_value > 0.2


def test_unseen_words_of_few_rows_may_be_chance() -> None:
    known, new = np.tile([1, 10], (100, 1)), np.tile([5, 10], (30, 1))
    known[::2] = [0, 10]
    found = drift.of_unseen(known, new)
    assert found.value == pytest.approx(0.45)
    assert found.p_value < 0.001
    assert drift.of_unseen(known, np.array([[1, 10], [1, 10], [0, 10]])).p_value > 0.3
    assert drift.of_unseen(known, np.array([[0, 10]])).p_value > 0.3


def test_lengths_largest_difference_of_shares() -> None:
    found = drift.of_lengths(np.array([1, 2, 3, 4]), np.array([3, 4, 5, 6]))
    assert found.value == pytest.approx(0.5)
    assert drift.of_lengths(np.full(500, 3), np.full(400, 3)).p_value == 1.0


def test_vectors_from_one_distribution_cannot_be_told_apart() -> None:
    random = np.random.default_rng(0)
    p_values = []
    for seed in range(8):
        found, _ = drift.of_vectors(random.normal(size=(200, 4)), random.normal(size=(300, 4)), seed)
        assert found.value == pytest.approx(0.5, abs=0.1)
        p_values.append(found.p_value)
    assert np.mean(np.array(p_values) < 0.2) < 0.6


def test_vectors_that_are_moved_are_told_apart_as_well_as_is_possible() -> None:
    random = np.random.default_rng(0)
    moved = random.normal(size=(2000, 1)) + 1.0
    found, scores = drift.of_vectors(random.normal(size=(2000, 1)), moved)
    assert found.value == pytest.approx(0.760, abs=0.02)  # the normal distribution at 1 / sqrt(2)
    assert found.p_value < 1e-50
    assert np.corrcoef(scores, moved[:, 0])[0, 1] > 0.9


def test_vectors_of_few_equal_rows_do_not_differ() -> None:
    same = np.ones((3, 4))
    assert drift.of_vectors(same, np.ones((5, 4)))[0] == (0.5, 1.0)
    found, scores = drift.of_vectors(same, np.zeros((1, 4)))
    assert (found, scores.tolist()) == ((0.5, 1.0), [0.5])


def test_typical_words_are_those_that_new_rows_have_more_often() -> None:
    known = [["the", "old", f"word{i % 7}"] for i in range(200)]
    new = [["the", "new", "new", f"word{i % 7}"] for i in range(200)] + [["rare"]]
    assert drift.typical_words(known, new, 5) == ["new"]
    assert drift.typical_words(known, known, 5) == []
    assert drift.typical_words([["a"]], [["a"]], 5) == []

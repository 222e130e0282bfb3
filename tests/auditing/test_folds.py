"""Out-of-fold probabilities: folds of groups, and models that never saw the row."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers.topics import make
from txclf.auditing.folds import assign, out_of_fold
from txclf.data import shards


def test_assign_keeps_groups_together_in_any_order_of_the_rows() -> None:
    texts = [f"text {number // 3} {number % 3}" for number in range(300)]
    groups = np.arange(300) // 3
    hashes = shards.text_hashes((text,) for text in texts)
    folds = assign(hashes, groups, 5)
    assert set(folds) == set(range(5))
    assert all(len(set(folds[groups == group])) == 1 for group in range(100))
    order = np.random.default_rng(0).permutation(300)
    assert (assign(hashes[order], groups[order], 5) == folds[order]).all()


@pytest.mark.parametrize("groups", [5, 6, 7])
def test_assign_few_groups_leave_no_fold_empty(groups: int) -> None:
    hashes = shards.text_hashes((str(number),) for number in range(groups))
    assert set(assign(hashes, np.arange(groups), 5)) == set(range(5))


def test_out_of_fold_answers_come_from_the_other_folds() -> None:
    texts, topics = make(300)
    labels = topics.copy()
    labels[::10] = (topics[::10] + 1) % 3
    seen: list[tuple[int, int]] = []
    folds = np.arange(300) % 3
    found = out_of_fold(texts, labels, folds, num_labels=3, report=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 3), (1, 3), (2, 3)]
    assert found.probabilities.sum(axis=1) == pytest.approx(np.ones(300), abs=1e-5)
    assert (
        found.probabilities.argmax(axis=1) == topics
    ).mean() > 0.9  # a model that saw the row would repeat its label
    assert found.temperature > 0


def test_out_of_fold_of_label_sets_and_of_a_class_in_one_fold() -> None:
    texts, topics = make(120)
    targets = np.stack([topics == 0, topics != 1, np.arange(120) == 7], axis=1)
    found = out_of_fold(texts, targets, np.arange(120) % 2, num_labels=3)
    assert ((found.probabilities[:, :2] > 0.5) == targets[:, :2]).mean() > 0.9
    assert ((found.probabilities >= 0) & (found.probabilities <= 1)).all()
    assert found.probabilities[7, 2] < 0.5

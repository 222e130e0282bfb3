"""Baselines: the majority class, and the linear model as it stands in `metrics.json`."""

from __future__ import annotations

import numpy as np
import pytest

from txclf.evaluation import baselines
from txclf.evaluation.baselines import Rows

TEXTS = ["rain and wind", "goal and match", "storm, rain", "team goal"] * 10
LABELS = np.array([0, 1, 0, 1] * 10)


@pytest.mark.parametrize(("labels", "expected"), [([2, 2, 1], 2), ([0], 0), ([3, 1, 1, 3], 1)])
def test_majority_any_labels_predicts_the_most_frequent(labels: list[int], expected: int) -> None:
    assert baselines.majority(np.array(labels), 4).tolist() == [expected] * 4
    assert baselines.majority(np.array(labels), 0).tolist() == []


def test_ngrams_scores_texts_and_describes_the_model() -> None:
    rows = Rows(TEXTS, LABELS)
    found = baselines.ngrams(rows, Rows(TEXTS[:8], LABELS[:8]), ["wind", "match"], num_labels=2)
    assert found.logits.argmax(axis=1).tolist() == [0, 1]
    record = found.record(50)
    assert record["model"].startswith("n-gram linear model: ")
    assert (record["train_rows"], record["of_train_rows"]) == (40, 50)
    assert record["seconds"] > 0
    assert baselines.ngrams(rows, rows, [], num_labels=2).logits.shape == (0, 2)

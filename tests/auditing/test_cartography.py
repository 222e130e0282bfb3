"""Coordinates of rows on the data map: easy, hard and ambiguous rows are where they belong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from txclf.auditing import cartography
from txclf.auditing.cartography import EPOCHS, data_map


def rows(features: Sequence[Sequence[float]]) -> csr_matrix:
    return csr_matrix(np.array(features, np.float32))


def test_data_map_wrong_labels_have_the_lowest_confidence() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(3, size=600)
    features = np.eye(3, dtype=np.float32)[labels]
    given = labels.copy()
    given[:30] = (given[:30] + 1) % 3
    found = data_map(csr_matrix(features), given, 3)
    assert found.confidence[:30].max() < 0.2
    assert found.confidence[30:].min() > 0.6
    assert np.all((found.variability >= 0) & (found.variability <= 0.5))


def test_data_map_is_the_mean_and_the_deviation_over_the_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = rows([[1, 0], [0, 1], [0.8, 0.6]]), np.array([0, 1, 1])
    seen = []
    for epochs in range(1, EPOCHS + 1):
        monkeypatch.setattr(cartography, "EPOCHS", epochs)
        seen.append(data_map(features, labels, 2).confidence * epochs)  # the sum of the first epochs
    each = np.diff(np.array(seen), axis=0, prepend=0)
    found = data_map(features, labels, 2)
    np.testing.assert_allclose(found.confidence, each.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(found.variability, each.std(axis=0), atol=1e-5)
    assert each[-1, 0] > each[0, 0]


def test_data_map_label_sets_count_the_least_likely_answer() -> None:
    features = rows([[1, 0]] * 40 + [[0, 1]] * 40)
    labels = np.zeros((80, 2), np.bool_)
    labels[:40, 0] = True
    labels[:, 1] = True  # a label of every row
    labels[0, 0] = False
    found = data_map(features, labels, 2)
    assert found.confidence[0] < 0.2
    assert found.confidence[1:].min() > 0.6
    assert np.isfinite(found.confidence).all()


def test_data_map_rows_without_features_and_one_label() -> None:
    found = data_map(rows([[0, 0], [0, 0]]), np.array([0, 0]), 1)
    assert found.confidence.tolist() == [1.0, 1.0]
    assert found.variability.tolist() == [0.0, 0.0]


def test_data_map_without_any_feature_follows_the_frequencies() -> None:
    found = data_map(csr_matrix((4, 0), dtype=np.float32), np.array([0, 0, 0, 1]), 2)
    assert found.confidence[0] > 0.5 > found.confidence[3]

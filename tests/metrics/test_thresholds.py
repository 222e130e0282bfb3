"""Decision thresholds: F1 on other rows, rare labels, degenerate rows."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_recall_curve

from txclf.inference.classifier import sigmoid
from txclf.metrics import thresholds


def make(rows: int, shares: list[float], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return informative logits, and targets with the given share of rows per label."""
    draw = np.random.default_rng(seed)
    targets = draw.random((rows, len(shares))) < shares
    prior = np.log(np.array(shares) / (1 - np.array(shares)))
    return (draw.normal(size=targets.shape) + prior + 2 * targets).astype(np.float32), targets


def f1(logits: np.ndarray, targets: np.ndarray, chosen: list[float]) -> float:
    given = sigmoid(logits) >= np.array(chosen, np.float32)
    return float(np.mean([f1_score(targets[:, i], given[:, i], zero_division=0) for i in range(len(chosen))]))


def test_choose_improves_f1_of_rare_labels_on_other_rows() -> None:
    shares = [0.4, 0.1, 0.02, 0.01]
    chosen = thresholds.choose(*make(3000, shares, seed=0))
    others = make(20_000, shares, seed=1)
    assert f1(*others, chosen) > f1(*others, [0.5] * 4) + 0.1
    assert chosen[0] > chosen[2]
    best = [max(f1(others[0][:, [i]], others[1][:, [i]], [t]) for t in np.linspace(0.01, 0.9, 60)) for i in range(4)]
    assert f1(*others, chosen) == pytest.approx(np.mean(best), abs=0.03)
    assert chosen == thresholds.choose(*make(3000, shares, seed=0))


def test_choose_bagging_generalizes_better_than_one_optimum() -> None:
    gains = []
    for seed in range(20):
        logits, targets = make(400, [0.05], seed)
        others = make(20_000, [0.05], 100 + seed)
        precision, recall, edges = precision_recall_curve(targets[:, 0], sigmoid(logits)[:, 0])
        alone = float(edges[(2 * precision * recall / (precision + recall + 1e-9)).argmax()])
        gains.append(f1(*others, thresholds.choose(logits, targets)) - f1(*others, [alone]))
    assert np.mean(gains) > 0


def test_choose_rare_labels_share_a_threshold() -> None:
    logits, targets = make(500, [0.3, 0.3, 0.3], seed=3)
    targets[:, 1] = targets[:, 2] = False
    targets[: thresholds.MIN_ROWS - 1, 1] = True
    chosen = thresholds.choose(logits, targets)
    assert chosen[1] == chosen[2] != chosen[0]
    common = chosen[1]
    tried = [f1(logits.reshape(-1, 1), targets.reshape(-1, 1), [t]) for t in np.linspace(0.01, 0.99, 99)]
    assert f1(logits.reshape(-1, 1), targets.reshape(-1, 1), [common]) >= max(tried) - 0.005


@pytest.mark.parametrize("rows", [0, 1, 30])
def test_choose_without_labels_is_one_half(rows: int) -> None:
    assert thresholds.choose(np.zeros((rows, 3), np.float32), np.zeros((rows, 3), bool)) == [0.5] * 3


def test_choose_all_positive_rows_and_equal_scores() -> None:
    logits = np.array([[1.0], [2.0], [3.0], [1.5], [2.5], [1.0]], np.float32)
    (low,) = thresholds.choose(logits, np.ones((6, 1), bool))
    assert (sigmoid(logits) >= low).all()
    same = np.full((20, 1), -3.0, np.float32)
    (equal,) = thresholds.choose(same, np.arange(20)[:, None] < 10)
    assert (sigmoid(same) >= equal).all()

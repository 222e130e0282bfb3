"""Intervals: values are those of scikit-learn, ends those of resampled rows, coverage as promised."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from txclf.metrics import intervals


def answers(rows: int, seed: int, share: float = 0.2, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Return class ids, and predictions of which about `share` are wrong."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, rows)
    return labels, np.where(draw.random(rows) < share, draw.integers(0, classes, rows), labels)


def test_of_scores_values_equal_those_of_scikit_learn() -> None:
    labels, predicted = answers(300, 0)
    found = intervals.of_scores(labels, predicted, 6)  # two classes never occur
    assert found.micro.value == pytest.approx(accuracy_score(labels, predicted))
    assert found.macro.value == pytest.approx(f1_score(labels, predicted, average="macro"))
    each = f1_score(labels, predicted, average=None, labels=range(6), zero_division=0)
    assert [one.value for one in found.classes] == pytest.approx(each.tolist())
    assert all(one.low <= one.value <= one.high for one in (found.micro, found.macro, *found.classes))


def test_of_scores_ends_equal_those_of_plain_resampling() -> None:
    labels, predicted = answers(200, 1)
    draw = np.random.default_rng(5)
    drawn = [draw.integers(0, 200, 200) for _ in range(4000)]
    expected = np.quantile([(labels[rows] == predicted[rows]).mean() for rows in drawn], [0.025, 0.975])
    assert intervals.of_scores(labels, predicted, 4).micro[1:] == pytest.approx(expected.tolist(), abs=0.01)


def test_of_scores_masks_and_class_ids_of_the_same_rows_agree() -> None:
    labels, predicted = answers(200, 2)
    targets, guesses = (np.eye(4, dtype=bool)[column] for column in (labels, predicted))
    of_ids, of_masks = intervals.of_scores(labels, predicted, 4), intervals.of_scores(targets, guesses, 4)
    for one, other in zip((of_ids.micro, of_ids.macro), (of_masks.micro, of_masks.macro), strict=True):
        assert one.value == pytest.approx(other.value)
        assert one == pytest.approx(other, abs=0.015)


def test_of_differences_equal_models_differ_by_nothing() -> None:
    labels, predicted = answers(200, 3)
    found = intervals.of_differences(labels, predicted, predicted, 4)
    assert {found.micro, found.macro, *found.classes} == {(0, 0, 0)}


def test_of_differences_better_model_has_an_interval_above_zero() -> None:
    labels, good = answers(1000, 4, 0.05)
    _, poor = answers(1000, 4, 0.5)
    found = intervals.of_differences(labels, good, poor, 4)
    assert found.micro.low > 0.2
    assert found.micro.value == pytest.approx((good == labels).mean() - (poor == labels).mean())
    other = intervals.of_differences(labels, poor, good, 4)
    assert other.micro == pytest.approx((-found.micro.value, -found.micro.high, -found.micro.low), abs=0.01)


def test_of_scores_interval_covers_the_true_accuracy_as_often_as_promised() -> None:
    found = [intervals.of_scores(*answers(200, seed), 4).micro for seed in range(100, 200)]
    assert 88 <= sum(one.low <= 0.85 <= one.high for one in found) <= 100  # 0.85 = 1 - 0.2 * 3 / 4


def test_of_scores_interval_of_macro_f1_covers_the_true_one_with_many_small_classes() -> None:
    covered = 0
    for seed in range(20):
        labels, predicted = answers(600, seed, classes=150)
        found = intervals.of_scores(labels, predicted, 150).macro
        assert found.low < found.value < found.high
        covered += found.low <= 1 - 0.2 * 149 / 150 <= found.high  # F1 of each class is the accuracy: errors are alike
    assert covered >= 17


def test_record_no_rows_has_no_width() -> None:
    nothing = np.zeros(0, np.int64)
    found = intervals.record(nothing, nothing, nothing, ["a", "b"])
    assert found["difference"] == {"accuracy": [0, 0, 0], "f1_macro": [0, 0, 0]}
    assert found["per_class"]["b"] == {"f1": 0, "difference": [0, 0, 0]}


def noisy_masks(rows: int, labels: int, *shares: float) -> list[np.ndarray]:
    """Return masks of labels, and predictions of which so large shares are wrong."""
    draw = np.random.default_rng(0)
    targets = draw.random((rows, labels)) < 0.3
    return [targets, *(targets ^ (draw.random(targets.shape) < share) for share in shares)]


def test_of_differences_p_value_separates_a_clear_difference_from_none() -> None:
    targets, good, poor, again = noisy_masks(500, 4, 0.05, 0.3, 0.05)
    assert intervals.of_differences(targets, good, poor, 4).p_value == pytest.approx(2 / intervals.RESAMPLES)
    assert intervals.of_differences(targets, poor, good, 4).p_value == pytest.approx(2 / intervals.RESAMPLES)
    assert intervals.of_differences(targets, good, good, 4).p_value == 1.0
    assert intervals.of_differences(targets, good, again, 4).p_value > 0.05


def test_of_differences_p_value_without_rows_or_labels_is_one() -> None:
    for rows in (0, 5):
        never = np.zeros((rows, 3), np.bool_)
        assert intervals.of_differences(never, never, never, 3).p_value == 1.0


def test_record_p_value_of_many_cells_can_be_significant() -> None:
    targets, good, poor = noisy_masks(1500, 1200, 0.0, 0.1)
    found = intervals.record(targets, good, poor, list(map(str, range(1200))), "f1_micro")
    assert found["p_value"] == pytest.approx(2 / intervals.RESAMPLES)


def test_of_differences_more_comparisons_have_more_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "MAX_DRAWS", 1)
    targets, good, poor = noisy_masks(100, 4, 0.0, 0.5)
    found = [intervals.of_differences(targets, good, poor, 4, comparisons).p_value for comparisons in (1, 9)]
    assert found == pytest.approx([2 / 200, 2 / 360])

"""Class weights of single-label and multilabel runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from txclf.core.errors import ConfigError
from txclf.training.class_weights import MAX_POSITIVE_WEIGHT, class_weights, positive_weights

COUNTS = {"a": 60, "b": 30, "c": 10}


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("balanced", [100 / 180, 100 / 90, 100 / 30]),
        ({}, [1.0, 1.0, 1.0]),
        ({"a": 2.0, "b": 2.0, "c": 2.0}, [1.0, 1.0, 1.0]),
        ({"c": 11.0}, [0.5, 0.5, 5.5]),
        ({"a": 0.0}, [0.0, 2.5, 2.5]),
    ],
)
def test_class_weights_have_the_mean_1_over_the_rows(setting: Any, expected: list[float]) -> None:
    weights = class_weights(setting, COUNTS)
    assert weights is not None
    assert weights.tolist() == pytest.approx(expected)
    assert (weights * torch.tensor([60.0, 30.0, 10.0])).sum().item() / 100 == pytest.approx(1.0)


def test_class_weights_none_is_none() -> None:
    assert class_weights("none", COUNTS) is None


def test_class_weights_of_an_empty_class_are_finite() -> None:
    weights = class_weights("balanced", {"a": 10, "b": 0})
    assert weights is not None
    assert weights.isfinite().all()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"d": 1.0, "e": 2.0, "a": 1.0}, "`train.class_weights`: `d` is not a label; the labels are: `a`, `b`, `c`"),
        ({"a": 0.0, "b": 0.0, "c": 0.0}, "`train.class_weights`: every label that occurs has weight 0"),
    ],
)
def test_class_weights_impossible_raises(setting: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        class_weights(setting, COUNTS)


LABEL_COUNTS = {"a": 50, "b": 10, "c": 0, "d": 100, "e": 1}


def test_positive_weights_balanced_are_rows_without_to_rows_with() -> None:
    found = positive_weights("balanced", LABEL_COUNTS, 200)
    assert found is not None
    assert found.tolist() == pytest.approx([3.0, 19.0, MAX_POSITIVE_WEIGHT, 1.0, MAX_POSITIVE_WEIGHT])
    full = positive_weights("balanced", {"a": 200}, 200)
    assert full is not None
    assert full.tolist() == pytest.approx([1 / MAX_POSITIVE_WEIGHT])


def test_positive_weights_mapping_defaults_to_1() -> None:
    found = positive_weights({"b": 2.5}, LABEL_COUNTS, 200)
    assert found is not None
    assert found.tolist() == [1.0, 2.5, 1.0, 1.0, 1.0]
    assert positive_weights("none", LABEL_COUNTS, 200) is None
    with pytest.raises(ConfigError, match="`x` is not a label; the labels are: `a`, `b`, `c`, `d`, `e`"):
        positive_weights({"x": 1.0}, LABEL_COUNTS, 200)

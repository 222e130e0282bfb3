"""The `train` section of the run file."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from txclf.config.train import Train


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"focal_gamma": 2, "label_smoothing": 0.1}, "`focal_gamma` and `label_smoothing` exclude each other"),
        ({"sampling": "balanced", "class_weights": "balanced"}, "both balance the classes. Set one of them"),
        ({"sampling": "balanced", "class_weights": {"a": 2}}, "both balance the classes. Set one of them"),
        ({"average_checkpoints": 4}, r"`average_checkpoints` \(4\) is more than `keep_checkpoints` \(3\)"),
    ],
)
def test_train_keys_that_exclude_each_other_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Train.model_validate(settings)


def test_train_class_weights_keys_become_text() -> None:
    train = Train.model_validate({"class_weights": {0: 2, "a": 0.5}})
    assert train.class_weights == {"0": 2.0, "a": 0.5}

"""The early-stopping rule."""

from __future__ import annotations

import pytest

from txclf.config.train import Train
from txclf.training.early_stopping import out_of_patience


def history(*losses: float) -> list[dict[str, float]]:
    return [{"step": step, "valid_calibrated_loss": loss} for step, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("losses", "stops"),
    [((1.0,), False), ((1.0, 2.0), False), ((1.0, 2.0, 2.0), True), ((3.0, 1.0, 2.0), False), ((), False)],
)
def test_out_of_patience_counts_validations_since_the_best(losses: tuple[float, ...], stops: bool) -> None:
    assert out_of_patience(history(*losses), Train(early_stopping_patience=2)) is stops


@pytest.mark.parametrize("settings", [{"early_stopping_patience": 0}, {"train_on_valid": True}])
def test_out_of_patience_is_off_without_patience_or_on_training_rows(settings: dict[str, bool]) -> None:
    assert not out_of_patience(history(1.0, *[2.0] * 9), Train(**settings))  # type: ignore[arg-type]

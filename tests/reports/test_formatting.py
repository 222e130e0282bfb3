"""Differences, shares and metric names as pages and model cards show them."""

from __future__ import annotations

from txclf.reports import formatting


def test_whole_and_share_round() -> None:
    assert (formatting.whole(1234.5), formatting.whole(0)) == ("1,234", "0")
    assert (formatting.share(0.1234), formatting.share(1)) == ("12.3%", "100.0%")


def test_titled_known_numbers_are_listed_in_the_order_of_titles() -> None:
    metrics = {"valid_loss": 0.5, "bleu": 30.0, "valid_accuracy": 0.9, "rows": 7, "minority": "a", "auroc_macro": None}
    assert formatting.titled(metrics) == [("accuracy", 0.9), ("loss", 0.5), ("BLEU", 30.0)]
    assert formatting.titled({}) == []


def test_signed_difference_has_a_sign_unless_it_rounds_to_nothing() -> None:
    assert [formatting.signed(value) for value in (0.01, -0.25, 0.0, -0.00001)] == [
        "+0.0100",
        "\N{MINUS SIGN}0.2500",
        "0.0000",
        "0.0000",
    ]


def test_with_intervals_only_metrics_that_have_one_change() -> None:
    metrics = {"accuracy": 0.5, "loss": 1.0}
    found = formatting.with_intervals(formatting.titled(metrics), metrics, {"accuracy": (0.25, 0.75)})
    assert found == [("accuracy", "0.5000 (0.2500 to 0.7500)"), ("loss", 1.0)]

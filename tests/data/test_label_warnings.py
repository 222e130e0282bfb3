"""Warnings about labels."""

from __future__ import annotations

import pytest

from txclf.data.label_warnings import label_warnings, similar_labels, split_warnings


@pytest.mark.parametrize(
    ("group", "names", "what"),
    [
        (["spam", "Spam"], "`Spam`, `spam`", "case"),
        (["STRASSE", "straße"], "`STRASSE`, `straße`", "case"),
        (["very good", "very  good"], "`very  good`, `very good`", "whitespace"),
        (["very good", "very\u00a0good"], r"`very good`, `very\xa0good`", "whitespace"),
        (["pos", "pos\u200b"], r"`pos`, `pos\u200b`", "invisible characters"),
        (["pos", "\ufeffpos"], r"`pos`, `\ufeffpos`", "invisible characters"),
        (["caf\u00e9", "cafe\u0301"], r"`cafe\u0301`, `caf\xe9`", "Unicode form"),
        (["good", "\uff27ood"], r"`good`, `\uff27ood`", "Unicode form"),
        (["good", "goo\u00add", "Good"], r"`Good`, `good`, `goo\xadd`", "invisible characters"),
    ],
)
def test_label_warnings_name_labels_that_look_the_same(group: list[str], names: str, what: str) -> None:
    assert similar_labels([*group, "other"]) == [sorted(group)]
    (warning,) = label_warnings([*group, "other"], {"string"})
    assert warning.startswith(f"{names}: labels that differ only in ")
    assert what in warning


@pytest.mark.parametrize("labels", [["a", "b"], ["1", "10", "-1"], ["c", "c++", "c#"], ["\u200b", "\u200d"], []])
def test_label_warnings_different_labels_give_none(labels: list[str]) -> None:
    assert label_warnings(labels, {"string"}) == []


def test_label_warnings_name_booleans_among_other_labels() -> None:
    (warning,) = label_warnings(["false", "maybe"], {"string", "boolean"})
    assert warning.startswith("`false`: booleans among labels of other types")
    assert label_warnings(["false", "true"], {"boolean"}) == []
    assert label_warnings(["false", "true"], {"string"}) == []


def test_split_warnings_name_classes_without_training_rows() -> None:
    (warning,) = split_warnings({"train": {"a": 5, "b": 0}, "valid": {"a": 1, "b": 2}, "test": {"a": 1, "b": 1}})
    assert warning.startswith("`b`: no training row. The 3 row(s) of this class are held out")


def test_warnings_of_one_kind_are_few() -> None:
    labels = [name for i in range(50) for name in (f"a{i}", f"A{i}")]
    assert len(label_warnings(labels, {"string"})) == 11
    assert label_warnings(labels, {"string"})[-1] == "40 more warnings of this kind"


def test_split_warnings_name_classes_without_validation_rows() -> None:
    counts = {"train": {"ham": 190, "spam": 28, "rare": 2}, "valid": {"ham": 22, "spam": 0, "rare": 0}}
    (warning,) = split_warnings(counts)
    assert warning.startswith("`spam`: no validation row, but 28 for training.")
    assert split_warnings({"train": counts["train"]}) == []


def test_label_warnings_name_integers_that_are_also_written_as_fractions() -> None:
    (warning,) = label_warnings(["0", "1", "1.0", "2.5", "3.0"], {"string"})
    assert warning.startswith("`1` and `1.0`: different classes")

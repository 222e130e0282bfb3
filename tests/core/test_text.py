"""Values as text to show: short, and with hidden characters escaped."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from txclf.core import text
from txclf.core.errors import DataError


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("naïve 日本 🎉", "naïve 日本 🎉"),
        ("a\x1b[31m\r\nb\x00", r"a\x1b[31m\r\nb\x00"),
        ("\u202egpj.exe\u2066", r"\u202egpj.exe\u2066"),
        ("ham\u200b\ufeff", r"ham\u200b\ufeff"),
        ("caf\udce9", r"caf\udce9"),
        ("\u2028\u2029\x85", r"\u2028\u2029\x85"),
        (3.5, "3.5"),
    ],
)
def test_shown_hidden_characters_are_escaped(value: object, shown: str) -> None:
    assert text.shown(value) == shown
    assert text.shown(shown) == shown


def test_shown_long_value_keeps_its_beginning_and_its_end() -> None:
    value = text.shown("begin" + "x" * 50_000 + "end")
    assert len(value) == text.MAX_CHARS
    assert value.startswith("beginxxx")
    assert value.endswith("xxxend")


def test_listed_names_the_first_values_and_the_number_of_the_others() -> None:
    assert text.listed({"a": 1, "b\t": 2}) == r"`a`, `b\t`"
    assert text.listed(range(10_000)).endswith("`9` and 9,990 more")


def test_distinct_long_names_stay_apart() -> None:
    assert text.distinct(["a", "b\x1b"]) == ["a", r"b\x1b"]
    first, second = text.distinct(["x" * 200 + "1" + "x" * 200, "x" * 200 + "2" + "x" * 200])
    assert first != second


def test_message_has_few_short_lines() -> None:
    lines = text.message("\n".join(["x" * 5_000, *map(str, range(500)), "fix it"])).split("\n")
    assert len(lines) == text.MAX_LINES
    assert len(lines[0]) == text.MAX_LINE_CHARS
    assert lines[-4:] == ["… (403 more lines)", "498", "499", "fix it"]


def test_escaped_keeps_the_characters_that_are_named() -> None:
    assert text.escaped("a\n\t\x07", kept="\n\t") == "a\n\t\\x07"


def test_error_messages_are_short_and_escaped_also_after_pickling() -> None:
    error = DataError(f"`\x1b]0;{'x' * 100_000}`: what is wrong. How to fix it.")
    assert str(error).startswith(r"`\x1b]0;xxx")
    assert str(error).endswith("xxx`: what is wrong. How to fix it.")
    assert len(str(error)) < 1_100
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_nearest_names_a_close_name_only() -> None:
    assert text.nearest("lable", ["label", "text"]) == "Did you mean `label`? "
    assert text.nearest("zzz", ["label", "text"]) == ""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "–"),
        (0.0, "0.0000"),
        (0.12345, "0.1235"),
        (-0.5, "-0.5000"),
        (0.000123456, "0.000123"),
        (1234.56, "1,235"),
        (1234567, "1,234,567"),
        (True, "True"),
        ("text", "text"),
    ],
)
def test_number_any_value_is_formatted_for_a_table(value: Any, expected: str) -> None:
    assert text.number(value) == expected

"""YAML of run files: bounds, malformed tags, and what is written can be read."""

from __future__ import annotations

import time

import pytest

from txclf.config import yaml_text
from txclf.config.yaml_text import YamlError

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (BOMB, "more than 200,000 values"),
        (
            "a: &a {b: 1}\n" + "".join(f"m{i}: {{<<: *a, k{i}: 1}}\n" for i in range(100_000)),
            "more than 200,000 values",
        ),
        ("a: &a [*a]\n", "a value contains itself"),
        ("[" * 100_000, "more than 32 levels"),
        ("{a: " * 100_000, "more than 32 levels"),
        ("- " * 100_000, "more than 32 levels"),
        ("a: " + "x" * 5_000_000, "more than 4,194,304 bytes"),
        ("a: " + "9" * 200, "a number of more than 100 characters"),
        ("a: 0x" + "f" * 20_000, "a number of more than 100 characters"),
        ("a: 1" + ":59" * 100_000, "a number of more than 100 characters"),
        ("a: 1." + "0" * 500, "a number of more than 100 characters"),
        ('a: "\\ud800"', "not valid in text"),
        ('a: "\\0"', "not valid in text"),
        ('a: !!int ""', "does not fit its tag"),
        ("a: !!bool maybe", "does not fit its tag"),
        ("a: !!float x", "could not convert"),
        ("a: !!timestamp x", "does not fit its tag"),
        ("? [a]\n: 1", "unhashable key"),
        ("\0", "special characters are not allowed"),
    ],
)
def test_parse_beyond_the_bounds_raises_soon(text: str, problem: str) -> None:
    start = time.process_time()
    with pytest.raises(YamlError, match=problem):
        yaml_text.parse(text)
    assert time.process_time() - start < 30


def test_parse_aliases_within_the_bounds_are_repeated() -> None:
    assert yaml_text.parse("a: &a {b: [1, 2]}\nc: *a\nd: {<<: *a, e: 1e-3}\n") == {
        "a": {"b": [1, 2]},
        "c": {"b": [1, 2]},
        "d": {"b": [1, 2], "e": 0.001},
    }


def test_written_values_are_read_as_they_were() -> None:
    settings = {"name": "12e4", "train": {"learning_rate": 1e-5}, "data": {"text": ["a", "ü: b", "yes", "1:30"]}}
    assert yaml_text.parse(yaml_text.written(settings)) == settings

"""Words of many scripts, and texts made of them."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txclf.core.words import joined, split, unspaced_share


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't go, naïve_1!", ["Don", "'", "t", "go", ",", "naïve_1", "!"]),
        ("Ha\u0308user", ["Häuser"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("ที่ดี", ["ที่", "ดี"]),
        ("今天 好，ok吗", ["今", "天", "好", "，", "ok", "吗"]),
        ("カタカナ", list("カタカナ")),
        ("한국어 문장", ["한국어", "문장"]),
        ("\u0301 a\u200b\U00020000", ["\u0301", "a", "\u200b", "\U00020000"]),
        ("", []),
    ],
)
def test_split_keeps_marks_and_takes_letters_without_blanks_as_words(text: str, words: list[str]) -> None:
    assert split(text) == words


@given(st.text())
def test_split_loses_no_character_but_blanks(text: str) -> None:
    assert "".join(split(text)) == "".join(unicodedata.normalize("NFC", text).split())


def test_joined_puts_blanks_where_the_script_has_some() -> None:
    assert joined(["今", "天", "is", "好"]) == "今天 is 好"
    assert joined(["one", "two"]) == "one two"


def test_unspaced_share_counts_characters_that_are_not_blank() -> None:
    assert unspaced_share(["今天 ab", " "]) == 0.5
    assert unspaced_share(["plain text", ""]) == unspaced_share([]) == 0.0

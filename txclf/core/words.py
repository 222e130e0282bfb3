"""Words of any script: which characters belong together, and how words become a text.

Chinese, Japanese, Thai, Lao, Khmer and Burmese are written without blanks between words. Of their texts, each letter
with its marks is read as a word, as pairs and triples of letters tell topics as well as words would.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache

CHINESE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U000323af"
"""Letters of Chinese and Japanese, as ranges of a regular expression."""
UNSPACED = f"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff{CHINESE}"
"""Letters of all scripts without blanks between words."""
_INNER_BLANK = re.compile(rf"(?<=[{CHINESE}]) (?=[{CHINESE}])")


_ASCII_WORD = re.compile(r"\w+|[^\w\s]")


def split(text: str) -> list[str]:
    """Return the words of a text in NFC: runs of letters, digits and their marks, and single other characters.

    A vowel of Hindi is a mark, and so is the umlaut of a decomposed `ä`. Python's `\\w` leaves marks out.
    """
    return _ASCII_WORD.findall(text) if text.isascii() else _word().findall(unicodedata.normalize("NFC", text))


@cache
def _word() -> re.Pattern[str]:
    letter, marks = rf"[^\W{UNSPACED}]", f"[{_marks()}]"
    return re.compile(rf"{letter}+(?:{marks}+{letter}*)*|[{UNSPACED}]{marks}*|[^\w\s]")


def _marks() -> str:
    """Return the characters that belong to the one before them, as ranges of a regular expression."""
    kinds = "".join(unicodedata.category(chr(code))[0] for code in range(0x20000))
    ranges = [f"{chr(found.start())}-{chr(found.end() - 1)}" for found in re.finditer("M+", kinds)]
    return "".join(ranges) + "\U000e0100-\U000e01ef"  # variants of ideographs; no other planes have marks


def joined(words: Iterable[str]) -> str:
    """Return words as a text, without the blanks between letters of Chinese and Japanese."""
    return _INNER_BLANK.sub("", " ".join(words))


def unspaced_share(texts: Iterable[str]) -> float:
    """Return the share of the characters of texts, without blanks, that are of scripts without blanks."""
    unspaced, blank = re.compile(rf"[{UNSPACED}]+"), re.compile(r"\s+")
    letters = rest = 0
    for text in texts:
        dense = blank.sub("", text)
        left = len(unspaced.sub("", dense))
        letters, rest = letters + len(dense) - left, rest + left
    return letters / max(1, letters + rest)

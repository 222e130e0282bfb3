"""Tokenization with a cache of words: the same ids as the `tokenizers` library, several times as fast.

A text is split at each space that follows a visible character. If the tokenizer splits there too (`splits_at_spaces`),
the tokens of a text are those of its words in order. A table from words to tokens then serves all texts, because a
corpus has far fewer distinct words than words. One exception is checked: a new word with characters beyond ASCII must
give the same tokens at the end of a text and between other words.
"""

from __future__ import annotations

import json
import re
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain, repeat
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer as FastTokenizer

from txclf import upstream
from txclf.core import ragged
from txclf.core.errors import DataError
from txclf.data.sampler import Int32s, Ints

MAX_WORDS = 500_000
"""Words in the table. A larger table is cleared, to bound memory."""
MAX_CHARACTERS = 2**28
"""Characters per call, because the strings of an array of pyarrow have at most 2 GiB. More texts are cut into calls."""
MIN_TEXTS = 32
"""Texts per call below which the tokenizer alone is faster."""
WORD_BREAK = "\0"
NEIGHBOUR = "a"
"""Word placed around others to test if their tokens depend on the context."""
_INNER_SPACE = re.compile(r"(?<=\S) ")
_CONTEXT_FREE = {"Lowercase", "NFC", "NFKC", "NFD", "NFKD", "StripAccents", "BertNormalizer"}
"""Normalizers that treat a character the same way, whatever comes on the other side of a space."""
_WORD_PATTERN = {"Regex": r"\w+|[^\w\s]"}
"""Pattern of `tokenizer.kind: word`."""


def splits_at_spaces(tokenizer: FastTokenizer) -> bool:
    """Return True if the tokenizer splits at each space between two words and treats every word alike."""
    description = json.loads(tokenizer.to_str())
    normalizer = description["normalizer"] or {"type": "Sequence", "normalizers": []}
    steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    pre_tokenizer = description["pre_tokenizer"] or {}
    is_sequence = pre_tokenizer.get("type") == "Sequence"
    first = (pre_tokenizer["pretokenizers"] or [{}])[0] if is_sequence else pre_tokenizer
    return bool(
        _pre_tokenizer_splits(first)
        and all(step["type"] in _CONTEXT_FREE for step in steps)
        and not description["model"].get("dropout")
        # Tokens that are not special are searched for in the whole text, before anything else.
        and all(token["special"] for token in description["added_tokens"])
        and tokenizer.encode_special_tokens
    )


def _pre_tokenizer_splits(settings: dict[str, Any]) -> bool:
    kind = settings.get("type")
    if kind == "ByteLevel":
        return bool(settings.get("add_prefix_space") and settings.get("use_regex", True))
    if kind == "Metaspace":
        return bool(settings.get("prepend_scheme") == "always" and settings.get("split", True))
    if kind == "Split":
        return settings.get("pattern") == _WORD_PATTERN and settings.get("behavior") == "Removed"
    return kind in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")


class WordCache:
    """Tokenizer with a table of the tokens of words that it has seen. Threads may share it."""

    def __init__(self, tokenizer: FastTokenizer) -> None:
        self.tokenizer = tokenizer
        self.lock = threading.Lock()
        """Held while the table is read or extended."""
        self._clear()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, lock=threading.Lock())

    @cached_property
    def usable(self) -> bool:
        """True if the tokens of a text are those of its words in order."""
        return splits_at_spaces(self.tokenizer)

    def _clear(self) -> None:
        self.numbers: dict[str, int] = {}
        """Number of each word."""
        self.ids: Int32s = np.empty(0, np.int32)
        """Tokens of all words, one word after another."""
        self.starts: Ints = np.zeros(1, np.int64)
        """Position in `ids` of the first token of each word, and the end of the last word."""
        self.context_dependent: set[int] = set()
        """Numbers of words whose tokens depend on their neighbours. Texts with such a word are tokenized whole."""

    def encode(self, texts: Sequence[str]) -> tuple[Int32s, Ints]:
        """Return the token ids of all texts (tokens,), one text after another, and the tokens per text (texts,)."""
        if len(texts) > 1 and sum(map(len, texts)) > MAX_CHARACTERS:
            middle = len(texts) // 2
            (ids, lengths), (later_ids, later_lengths) = self.encode(texts[:middle]), self.encode(texts[middle:])
            return np.concatenate([ids, later_ids]), np.concatenate([lengths, later_lengths])
        if len(texts) < MIN_TEXTS or not self.usable:
            return ragged.flatten(self._tokenize(texts))
        words = pc.split_pattern(pa.array(map(_mark_breaks, texts), pa.string()), WORD_BREAK)
        counts = np.diff(words.offsets.to_numpy())
        distinct = words.flatten().dictionary_encode()
        with self.lock:
            if len(self.numbers) > MAX_WORDS:
                self._clear()
            numbers = self._look_up(distinct.dictionary.to_pylist())[distinct.indices.to_numpy()]
            all_ids, starts, context_dependent = self.ids, self.starts, list(self.context_dependent)
        sizes = np.diff(starts)[numbers]
        ends = np.cumsum(counts)
        lengths = np.diff(np.append(0, np.cumsum(sizes))[np.append(0, ends)])
        ids = all_ids[ragged.concat_ranges(starts[:-1][numbers], sizes)]
        whole = [row for row, text in enumerate(texts) if not _starts_like_a_word(text) or WORD_BREAK in text]
        if context_dependent:
            dependent = np.flatnonzero(np.isin(numbers, context_dependent))
            whole += np.searchsorted(ends, dependent, "right").tolist()
        return self._replace_whole(texts, ids, lengths, sorted(set(whole))) if whole else (ids, lengths)

    def _replace_whole(self, texts: Sequence[str], ids: Int32s, lengths: Ints, whole: list[int]) -> tuple[Int32s, Ints]:
        """Replace the tokens of the texts with the numbers `whole` by those of the tokenizer."""
        rows = np.split(ids, np.cumsum(lengths)[:-1])
        for number, row in zip(whole, self._tokenize([texts[number] for number in whole]), strict=True):
            rows[number] = np.array(row, np.int32)
        return np.concatenate(rows), np.fromiter(map(len, rows), np.int64, len(rows))

    def _look_up(self, words: Sequence[str]) -> Ints:
        """Return the numbers of distinct words and add the new words to the table."""
        numbers = np.fromiter(map(self.numbers.get, words, repeat(-1)), np.int64, len(words))
        unknown = np.flatnonzero(numbers < 0)
        if len(unknown):
            numbers[unknown] = self._add([words[i] for i in unknown.tolist()])
        return numbers

    def _add(self, words: Sequence[str]) -> Ints:
        """Add new words to the table and return their numbers."""
        first = len(self.numbers)
        (neighbour,) = self._tokenize([NEIGHBOUR])
        # After another word, because a tokenizer may treat white space at the start of a text differently.
        tokens = [ids[len(neighbour) :] for ids in self._tokenize([f"{NEIGHBOUR} {word}" for word in words])]
        # No normalizer turns ASCII into a space or changes it by its neighbours, so ASCII words need no check.
        doubtful = [i for i, word in enumerate(words) if not word.isascii()]
        differing = self._differing([words[i] for i in doubtful], [tokens[i] for i in doubtful], neighbour)
        self.context_dependent.update(first + doubtful[i] for i in differing)
        ids, lengths = ragged.flatten(tokens)
        self.starts = np.append(self.starts, self.starts[-1] + np.cumsum(lengths))
        self.ids = np.append(self.ids, ids)
        self.numbers.update(zip(words, range(first, first + len(words)), strict=True))
        return np.arange(first, first + len(words))

    def _differing(
        self, words: Sequence[str], tokens: Sequence[list[int]], neighbour: list[int], group: int = 64
    ) -> Iterator[int]:
        """Yield the positions of words that give other tokens between other words.

        The words are tokenized in groups first, then one by one in the groups that differ.
        """
        starts = range(0, len(words), group)
        texts = [" ".join([NEIGHBOUR, *words[start : start + group], NEIGHBOUR]) for start in starts]
        for start, ids in zip(starts, self._tokenize(texts), strict=True):
            inside = slice(start, start + group)
            if ids == [*neighbour, *chain.from_iterable(tokens[inside]), *neighbour]:
                continue
            if group == 1:
                yield start
            else:
                yield from (start + i for i in self._differing(words[inside], tokens[inside], neighbour, 1))

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        except TypeError:
            raise  # a text that is no string
        except BaseException as error:  # such as an unknown word without a token for it
            if not isinstance(error, Exception) and not upstream.is_rust_panic(error):
                raise
            raise DataError(
                f"`tokenizer.json`: the tokenizer fails on a text: {error}. Use a tokenizer that reads any text."
            ) from None


def _mark_breaks(text: str) -> str:
    """Replace each space that ends a word by `WORD_BREAK`."""
    if text.isprintable() and "  " not in text and not text.startswith(" "):  # the only white space is single spaces
        return text.replace(" ", WORD_BREAK)
    return _INNER_SPACE.sub(WORD_BREAK, text)


def _starts_like_a_word(text: str) -> bool:
    """Return False if the first character may be normalized to a space or to nothing."""
    first = text[:1]
    return "!" <= first <= "~" or (first.isalnum() and unicodedata.normalize("NFKC", first)[0] != " ")

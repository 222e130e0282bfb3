"""Tokenizing word by word, each word once: the ids of `tokenizers`, several times as fast.

A text is cut at each space after something visible. Where a tokenizer cuts there too (`splits_at_spaces`), the tokens
of a text are those of its words in a row, so a table of words and their tokens does for all texts, and a vocabulary of
words is small beside the words of a corpus. What could still differ is asked of the tokenizer: a new word beyond ASCII
must give the same tokens at the end of a text and among others.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain, repeat

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer as FastTokenizer

from txclf.data.sampler import Int32s, Ints

MOST_WORDS = 500_000
"""In the table; then it is begun anew, for memory."""
LEAST_TEXTS = 32
"""Below, the tokenizer alone is quicker."""
CUT, NEIGHBOUR = "\0", "a"
_INNER = re.compile(r"(?<=\S) ")
_CONTEXT_FREE = {"Lowercase", "NFC", "NFKC", "NFD", "NFKD", "StripAccents", "BertNormalizer"}
"""Normalizers that change no character because of one beyond a space."""


def splits_at_spaces(tokenizer: FastTokenizer) -> bool:
    """Whether a tokenizer cuts a text at each space between two words, and treats every word alike."""
    described = json.loads(tokenizer.to_str())
    model, before = described["model"], described["pre_tokenizer"] or {}
    normalizer = described["normalizer"] or {"type": "Sequence", "normalizers": []}
    steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    first = before["pretokenizers"][0] if before.get("type") == "Sequence" else before
    cuts = {
        "ByteLevel": first.get("add_prefix_space") and first.get("use_regex", True),
        "Metaspace": first.get("prepend_scheme") == "always" and first.get("split", True),
        "BertPreTokenizer": True,
        "Whitespace": True,
        "WhitespaceSplit": True,
        # The pattern of `kind: word`.
        "Split": first.get("pattern") == {"Regex": r"\w+|[^\w\s]"} and first.get("behavior") == "Removed",
    }
    return bool(
        cuts.get(first.get("type", ""))
        and all(step["type"] in _CONTEXT_FREE for step in steps)
        and not model.get("dropout")
        and all(token["special"] for token in described["added_tokens"])  # the others are looked for before all else
        and tokenizer.encode_special_tokens
    )


class Words:
    """A tokenizer that remembers words."""

    def __init__(self, tokenizer: FastTokenizer) -> None:
        self.tokenizer = tokenizer
        self._clear()

    @cached_property
    def usable(self) -> bool:
        """Whether its tokens are those of words in a row."""
        return splits_at_spaces(self.tokenizer)

    def _clear(self) -> None:
        self.places: dict[str, int] = {}
        self.ids: Int32s = np.empty(0, np.int32)
        """Tokens of all words, one after another."""
        self.starts: Ints = np.zeros(1, np.int64)
        """Of each word in `ids`, and the end of the last."""
        self.unsteady: set[int] = set()
        """Places of words whose tokens depend on what stands around them: texts that hold one are tokenized whole."""

    def encode(self, texts: Sequence[str]) -> tuple[Int32s, Ints]:
        """Token ids of all texts (tokens,), one after another, and how many each has (texts,)."""
        if len(texts) < LEAST_TEXTS or not self.usable:
            return _flat(self._ids(texts))
        if len(self.places) > MOST_WORDS:
            self._clear()
        words = pc.split_pattern(pa.array(map(_marked, texts), pa.string()), CUT)
        counts = np.diff(words.offsets.to_numpy())
        found = words.flatten().dictionary_encode()
        places = self._look_up(found.dictionary.to_pylist())[found.indices.to_numpy()]
        sizes = np.diff(self.starts)[places]
        ends = np.cumsum(counts)
        lengths = np.diff(np.append(0, np.cumsum(sizes))[np.append(0, ends)])
        ids = self.ids[_ranges(self.starts[:-1][places], sizes)]
        alone = [place for place, text in enumerate(texts) if not _begins(text) or CUT in text]
        if self.unsteady:
            alone += np.searchsorted(ends, np.flatnonzero(np.isin(places, list(self.unsteady))), "right").tolist()
        return self._mended(texts, ids, lengths, sorted(set(alone))) if alone else (ids, lengths)

    def _mended(self, texts: Sequence[str], ids: Int32s, lengths: Ints, alone: Sequence[int]) -> tuple[Int32s, Ints]:
        """With the texts at `alone` tokenized whole."""
        rows = np.split(ids, np.cumsum(lengths)[:-1])
        for place, row in zip(alone, self._ids([texts[place] for place in alone]), strict=True):
            rows[place] = np.array(row, np.int32)
        return np.concatenate(rows), np.fromiter(map(len, rows), np.int64, len(rows))

    def _look_up(self, words: Sequence[str]) -> Ints:
        """Places of distinct words in the table, which takes in those that are new."""
        places = np.fromiter(map(self.places.get, words, repeat(-1)), np.int64, len(words))
        unknown = np.flatnonzero(places < 0)
        if len(unknown):
            new = [words[place] for place in unknown.tolist()]
            first = len(self.places)
            (before,) = self._ids([NEIGHBOUR])
            # After another word, for at the start of a text a tokenizer may see to white space in another way.
            tokens = [ids[len(before) :] for ids in self._ids([f"{NEIGHBOUR} {word}" for word in new])]
            # No normalizer makes a space of ASCII or changes it by its neighbours, so the rest needs no asking.
            doubtful = [place for place, word in enumerate(new) if not word.isascii()]
            differing = self._differing(
                [new[place] for place in doubtful], [tokens[place] for place in doubtful], before
            )
            self.unsteady.update(first + doubtful[place] for place in differing)
            ids, lengths = _flat(tokens)
            self.starts = np.append(self.starts, self.starts[-1] + np.cumsum(lengths))
            self.ids = np.append(self.ids, ids)
            self.places.update(zip(new, range(first, first + len(new)), strict=True))
            places[unknown] = np.arange(first, first + len(new))
        return places

    def _differing(
        self, words: Sequence[str], tokens: Sequence[list[int]], before: list[int], group: int = 64
    ) -> Iterator[int]:
        """Which words give other tokens among others: asked of groups, then of the words of a group that differs."""
        groups = range(0, len(words), group)
        among = [" ".join([NEIGHBOUR, *words[start : start + group], NEIGHBOUR]) for start in groups]
        for start, ids in zip(groups, self._ids(among), strict=True):
            inside = slice(start, start + group)
            if ids == [*before, *chain.from_iterable(tokens[inside]), *before]:
                continue
            if group == 1:
                yield start
            else:
                yield from (start + place for place in self._differing(words[inside], tokens[inside], before, 1))

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def _marked(text: str) -> str:
    """With `CUT` for each space that words are cut at."""
    if text.isprintable() and "  " not in text and not text.startswith(" "):  # the only white space is single spaces
        return text.replace(" ", CUT)
    return _INNER.sub(CUT, text)


def _begins(text: str) -> bool:
    """Whether a text begins as any word does. What normalizes to a space or to nothing there does not."""
    first = text[:1]
    return "!" <= first <= "~" or (first.isalnum() and unicodedata.normalize("NFKC", first)[0] != " ")


def _flat(rows: Sequence[Sequence[int]]) -> tuple[Int32s, Ints]:
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    return np.fromiter(chain.from_iterable(rows), np.int32, int(lengths.sum())), lengths


def _ranges(starts: Ints, sizes: Ints) -> Ints:
    """The numbers from each start on, as many as its size says, one range after another."""
    ends = np.cumsum(sizes)
    return np.repeat(starts - ends + sizes, sizes) + np.arange(int(ends[-1]) if len(ends) else 0)

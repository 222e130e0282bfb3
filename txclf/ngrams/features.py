"""Counts of word and character n-grams, each known by a 64-bit hash of its text.

A word is a run of letters and digits, or a single other character that is not blank (`txclf.core.words`). Character
n-grams lie within one word and the blanks around it, so a text has those of its words: their counts are the product of
two sparse matrices. No vocabulary is needed to hash, and two n-grams of different texts have the same hash with a
chance of 1 in 10^19.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from txclf.core.hashing import UInt64s, mix
from txclf.core.words import joined, split

_ROWS = 4096
"""Rows that are counted at a time."""
MAX_TEXT_CHARS = 2**20
"""Characters after which a text is not read further."""
MAX_WORD_CHARS = 64
"""Characters of a word whose n-grams are counted."""


class Analyzer(BaseModel):
    """Which n-grams of a text are counted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    words: int
    """Maximum length of word n-grams; 0 for none."""
    characters: tuple[int, int] | None = None
    """Minimum and maximum length of character n-grams; None for none."""
    lowercase: bool = True


class Counts(NamedTuple):
    """Counts of the n-grams of some texts."""

    keys: UInt64s
    """Hashes of the n-grams (n-grams,), ascending. Those of characters have their highest bit set."""
    matrix: Any
    """Counts (rows, n-grams), a scipy CSR matrix of float32."""


_CHARACTERS = np.uint64(1 << 63)
"""Highest bit of a key, set for character n-grams."""


def count(texts: Sequence[str], analyzer: Analyzer, keys: UInt64s | None = None) -> Counts:
    """Count the n-grams of texts: all that occur, or those with known keys only (ascending)."""
    from scipy.sparse import csr_matrix, vstack

    parts = [_count(texts[start : start + _ROWS], analyzer, keys) for start in range(0, len(texts), _ROWS)]
    if keys is None:
        keys = np.unique(np.concatenate([np.empty(0, np.uint64), *(part.keys for part in parts)]))
    matrices = []
    for part in parts:
        matrix = part.matrix
        columns = np.searchsorted(keys, part.keys)[matrix.indices]
        matrices.append(csr_matrix((matrix.data, columns, matrix.indptr), shape=(matrix.shape[0], len(keys))))
    empty = csr_matrix((0, len(keys)), dtype=np.float32)
    return Counts(keys, vstack([empty, *matrices], format="csr", dtype=np.float32))


def is_characters(keys: UInt64s) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return a mask of the keys of character n-grams."""
    return keys >= _CHARACTERS


def spans(text: str, analyzer: Analyzer) -> Iterator[tuple[str, int]]:
    """Yield each n-gram of a text, as often as it occurs, with its key.

    Characters within a word have a `*` where the word goes on: `*oal` ends a word.
    """
    words = _words(text, analyzer)
    hashes = _word_hashes(words)
    for size in range(1, analyzer.words + 1):
        keys = _word_ngrams(hashes, np.zeros(len(words), np.int64), size)[0]
        for start, key in enumerate(keys.tolist()):
            yield joined(words[start : start + size]), key
    if analyzer.characters:
        shortest, longest = analyzer.characters
        for word in words:
            padded = f" {word[:MAX_WORD_CHARS]} "
            for size in range(shortest, longest + 1):
                keys = _character_ngrams([word], size)[1]
                for start, key in enumerate(keys.tolist()):
                    piece = padded[start : start + size]
                    first = "" if piece.startswith(" ") else "*"
                    yield first + piece.strip(" ") + ("" if piece.endswith(" ") else "*"), key


def _count(texts: Sequence[str], analyzer: Analyzer, known: UInt64s | None) -> Counts:
    """Count the n-grams of a few thousand texts."""
    from scipy.sparse import csr_matrix

    rows_of_words = [_words(text, analyzer) for text in texts]
    lengths = np.fromiter(map(len, rows_of_words), np.int64, len(texts))
    rows = np.repeat(np.arange(len(texts)), lengths)
    numbers: dict[str, int] = {}
    flat = (numbers.setdefault(word, len(numbers)) for words in rows_of_words for word in words)
    which = np.fromiter(flat, np.int64, lengths.sum())
    unique = list(numbers)
    blocks: list[tuple[UInt64s, Any]] = []
    hashes = _word_hashes(unique)[which]
    for size in range(1, analyzer.words + 1):
        keys, at = _word_ngrams(hashes, rows, size)
        blocks.append(_matrix(keys, rows[at], len(texts), known))
    if analyzer.characters and unique:
        of_words = csr_matrix((np.ones(len(which), np.float32), (rows, which)), shape=(len(texts), len(unique)))
        for size in range(analyzer.characters[0], analyzer.characters[1] + 1):
            words, keys = _character_ngrams(unique, size)
            found, grams = _matrix(keys, words, len(unique), known)
            blocks.append((found, of_words @ grams))
    return _joined(blocks, len(texts))


def _joined(blocks: Sequence[tuple[UInt64s, Any]], rows: int) -> Counts:
    """Return blocks of columns as one matrix with ascending keys."""
    from scipy.sparse import csr_matrix, hstack

    if not blocks:
        return Counts(np.empty(0, np.uint64), csr_matrix((rows, 0), dtype=np.float32))
    keys = np.concatenate([keys for keys, _ in blocks])
    order = np.argsort(keys)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    matrix = hstack([block for _, block in blocks], format="csr", dtype=np.float32)
    return Counts(keys[order], csr_matrix((matrix.data, place[matrix.indices], matrix.indptr), shape=matrix.shape))


def _matrix(keys: UInt64s, rows: Any, num_rows: int, known: UInt64s | None) -> tuple[UInt64s, Any]:
    """Return the distinct keys and their counts in each row."""
    from scipy.sparse import csr_matrix

    if known is not None:
        at = np.searchsorted(known, keys).clip(max=max(0, len(known) - 1))
        is_known = known[at] == keys if len(known) else np.zeros(len(keys), np.bool_)
        keys, rows = keys[is_known], rows[is_known]
    found, columns = np.unique(keys, return_inverse=True)
    counts = csr_matrix((np.ones(len(columns), np.float32), (rows, columns)), shape=(num_rows, len(found)))
    return found, counts


def _words(text: str, analyzer: Analyzer) -> list[str]:
    text = text[:MAX_TEXT_CHARS]
    return split(text.lower() if analyzer.lowercase else text)


def _word_hashes(words: Sequence[str]) -> UInt64s:
    digests = b"".join(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest() for word in words)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def _word_ngrams(hashes: UInt64s, rows: Any, size: int) -> tuple[UInt64s, Any]:
    """Return the keys of the word n-grams of one size, and the position of the first word of each."""
    num = max(0, len(hashes) - size + 1)
    keys = mix(hashes[:num] ^ np.uint64(size))
    for step in range(1, size):
        keys = mix(keys ^ mix(hashes[step : num + step] + np.uint64(step)))
    at = np.flatnonzero(rows[:num] == rows[size - 1 : num + size - 1])
    return keys[at] & ~_CHARACTERS, at


def _character_ngrams(words: Sequence[str], size: int) -> tuple[Any, UInt64s]:
    """Return the keys of the character n-grams of one size, and the position of the word of each."""
    padded = [f" {word[:MAX_WORD_CHARS]} " for word in words]
    lengths = np.fromiter(map(len, padded), np.int64, len(padded))
    codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    of_word = np.repeat(np.arange(len(padded)), lengths)
    num = max(0, len(codes) - size + 1)
    keys = mix(codes[:num] ^ np.uint64(size << 32))
    for step in range(1, size):
        keys = mix(keys ^ codes[step : num + step])
    at = np.flatnonzero(of_word[:num] == of_word[size - 1 : num + size - 1])
    return of_word[at], keys[at] | _CHARACTERS

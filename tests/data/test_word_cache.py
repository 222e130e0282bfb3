"""Word cache: the same ids as the `tokenizers` library on any text."""

from __future__ import annotations

import pickle
import random
import sys
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers

from txclf.config import run_config
from txclf.data import word_cache
from txclf.data.tokenizer import parse_tokenizer, train_tokenizer
from txclf.data.word_cache import WordCache

PLAIN = [
    "the quick brown fox, jumps",
    "over (the) lazy dog's 123 tails",
    "[PAD] wizards don't jump",
    "naïve café ﬁne ½",
]
PIECES = [
    *[
        "fox",
        "dog's",
        "THE",
        "wizard",
        "don't",
        "123",
        "3.5%",
        "ﬁ",
        "ǆ",
        "İ",
        "Σίσυφος",
        "日本",
        "🎉",
        "[PAD]",
        "[UNK]",
        "_",
    ],
    *[
        " ",
        " ",
        " ",
        " ",
        "  ",
        "   ",
        "\n",
        "\t",
        "\r\n",
        "\u00a0",
        "\u2003",
        "\u3000",
        "\x1c",
        "\x85",
        "\u200b",
        "\0",
    ],
    *["\u0301", "\u0308", "¨", "▁", "Ġ", "'s", "'", "-", "…", "<br />", "http://x.y/z?q=1", "\ufeff", "a" * 70],
]


def tokenizer(kind: str, normalize: str, lowercase: bool) -> FastTokenizer:
    settings = {"kind": kind, "vocab_size": 420, "min_frequency": 1, "normalize": normalize, "lowercase": lowercase}
    run = run_config.parse({"name": "run", "tokenizer": settings})
    return parse_tokenizer(train_tokenizer(run.tokenizer, PLAIN * 3).to_str())


def same(found: WordCache, texts: Sequence[str]) -> None:
    ids, lengths = found.encode(texts)
    rows = [row.tolist() for row in np.split(ids, np.cumsum(lengths)[:-1])]
    whole = [one.ids for one in found.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    wrong = [(text, row, ids) for text, row, ids in zip(texts, rows, whole, strict=True) if row != ids]
    assert not wrong, f"{len(wrong)} of {len(texts)}, first {wrong[0]}"
    assert ids.dtype == np.int32
    assert lengths.tolist() == list(map(len, whole))


KINDS = [
    (kind, normalize, lowercase)
    for kind in ("bpe", "wordpiece", "unigram", "word")
    for normalize, lowercase in (("none", False), ("nfc", True), ("nfkc", True))
]


@pytest.mark.parametrize(("kind", "normalize", "lowercase"), KINDS)
def test_encode_random_text_gives_the_ids_of_the_tokenizer(kind: str, normalize: str, lowercase: bool) -> None:
    found = WordCache(tokenizer(kind, normalize, lowercase))
    assert found.usable
    draw = random.Random(0)
    for _ in range(2):
        same(found, ["".join(draw.choices(PIECES, k=draw.randrange(12))) for _ in range(1500)])
        same(found, [" ".join(draw.choices(PIECES, k=draw.randrange(12))) for _ in range(1500)])
    assert found.numbers


@pytest.mark.parametrize(("kind", "normalize", "lowercase"), KINDS[2::3])
def test_encode_odd_character_next_to_a_space_gives_the_same_ids(kind: str, normalize: str, lowercase: bool) -> None:
    every = map(chr, range(sys.maxunicode + 1))
    odd = [
        sign
        for sign in every
        if unicodedata.category(sign)[0] in "ZPSMC" and unicodedata.category(sign) not in ("Cs", "Cn", "Co")
    ]
    assert len(odd) > 8000
    draw = random.Random(1)
    texts = [
        f"a{a} b {b}c {c} d {a}{b} {a}e{c}"
        for a, b, c in zip(odd, draw.sample(odd, len(odd)), draw.sample(odd, len(odd)), strict=True)
    ]
    same(WordCache(tokenizer(kind, normalize, lowercase)), texts)


def test_encode_full_table_is_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_cache, "MAX_WORDS", 100)
    found = WordCache(tokenizer("bpe", "nfc", True))
    for start in range(0, 1000, 100):
        same(found, [f"word{start + number} the fox" for number in range(100)])
        assert len(found.numbers) <= 203


def test_encode_few_texts_bypass_the_table() -> None:
    found = WordCache(tokenizer("bpe", "nfc", True))
    same(found, PLAIN)
    assert not found.numbers


def made(
    model: models.Model, before: pre_tokenizers.PreTokenizer | None, normal: normalizers.Normalizer | None = None
) -> FastTokenizer:
    made = FastTokenizer(model)
    if before is not None:
        made.pre_tokenizer = before
    if normal is not None:
        made.normalizer = normal
    made.decoder = decoders.ByteLevel()
    return parse_tokenizer(made.to_str())


VOCABULARY = {"[UNK]": 0, "a": 1, "b": 2, "a b": 3, "Ġa": 4, "Ġb": 5}
WORDS = models.WordLevel(VOCABULARY, "[UNK]")


@pytest.mark.parametrize(
    "other",
    [
        made(WORDS, None),
        made(WORDS, pre_tokenizers.ByteLevel(add_prefix_space=False)),
        made(WORDS, pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)),
        made(WORDS, pre_tokenizers.Metaspace(prepend_scheme="first")),
        made(WORDS, pre_tokenizers.Metaspace(split=False)),
        made(WORDS, pre_tokenizers.Punctuation()),
        made(WORDS, pre_tokenizers.Split(" b", "isolated")),
        made(WORDS, pre_tokenizers.Whitespace(), normalizers.Replace("a b", "b")),
        made(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")], dropout=0.5), pre_tokenizers.Whitespace()),
    ],
)
def test_encode_tokenizer_that_joins_words_bypasses_the_table(other: FastTokenizer) -> None:
    found = WordCache(other)
    assert not found.usable
    if not getattr(other.model, "dropout", None):
        same(found, ["a b a b", "b  a", "a"] * 20)
    assert not found.numbers


def test_usable_is_false_with_added_tokens() -> None:
    plain = made(WORDS, pre_tokenizers.Whitespace())
    assert WordCache(plain).usable
    plain.add_tokens(["a b"])
    assert not WordCache(plain).usable
    same(WordCache(plain), ["a b a b"] * 40)


def test_encode_context_dependent_word_gives_the_same_ids() -> None:
    # NFKC makes a space of the sign, which then belongs to the space before it.
    found = WordCache(tokenizer("bpe", "nfkc", True))
    same(found, [f"fox ¨{number} dog" for number in range(50)] + ["fox dog"] * 50)
    spoiled = WordCache(tokenizer("bpe", "nfkc", True))
    spoiled.context_dependent.add(0)
    same(spoiled, ["fox dog", "dog"] * 50)


def test_encode_in_several_calls_gives_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = train_tokenizer(run_config.parse({}).tokenizer, PLAIN * 4)
    texts = [*PLAIN * 20, "x" * 100, "", "fox"]
    ids, lengths = WordCache(tokenizer).encode(texts)
    monkeypatch.setattr(word_cache, "MAX_CHARACTERS", 50)
    found_ids, found_lengths = WordCache(tokenizer).encode(texts)
    np.testing.assert_array_equal(found_ids, ids)
    np.testing.assert_array_equal(found_lengths, lengths)


def test_splits_at_spaces_without_any_pre_tokenizer_is_false() -> None:
    tokenizer = FastTokenizer(models.WordLevel({"a": 0}))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])
    assert not word_cache.splits_at_spaces(tokenizer)


def test_encode_from_several_threads_gives_the_ids_of_the_tokenizer() -> None:
    cache = WordCache(tokenizer("bpe", "none", True))
    batches = [[f"word{batch}x{number % 40} fox {number}" for number in range(80)] for batch in range(24)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(cache.encode, batches))
    for batch, (ids, lengths) in zip(batches, found, strict=True):
        whole = [one.ids for one in cache.tokenizer.encode_batch_fast(batch, add_special_tokens=False)]
        assert (ids.tolist(), lengths.tolist()) == ([*chain.from_iterable(whole)], [*map(len, whole)])
    same(pickle.loads(pickle.dumps(cache)), batches[0])

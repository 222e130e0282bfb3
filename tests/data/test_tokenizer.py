"""Tokenizers: kinds, special tokens, text columns, truncation, repeatable training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from txclf.config.sections import Tokenizer, Truncation
from txclf.core.errors import DataError
from txclf.data.tokenizer import (
    SPECIAL_TOKENS,
    column_sizes,
    encode,
    parse_tokenizer,
    tokenizer_hash,
    train_tokenizer,
    vocab_size,
)
from txclf.data.word_cache import WordCache

KINDS = ["bpe", "wordpiece", "unigram", "word"]
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "Don't over-jump the dog's fox!",
    "the naïve café: 日本 🎉",
] * 10


def config(kind: str = "word", **settings: Any) -> Tokenizer:
    return Tokenizer(kind=cast(Any, kind), **{"vocab_size": 400, "min_frequency": 1, **settings})


@pytest.fixture(scope="module")
def trained() -> dict[str, FastTokenizer]:
    return {kind: train_tokenizer(config(kind), TEXTS) for kind in KINDS}


def tokens(tokenizer: FastTokenizer, text: str) -> list[str]:
    return list(tokenizer.encode(text, add_special_tokens=False).tokens)


def ids_of(tokenizer: FastTokenizer, rows: Sequence[tuple[str, ...]], max_length: int = 100) -> list[list[int]]:
    ids, _ = encode(WordCache(tokenizer), rows, max_length)
    found: list[list[int]] = ids.to_pylist()
    return found


# ---------------------------------------------------------------------------------------------------------------- kinds


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("bpe", "The fox", ["Ġthe", "Ġfox"]),
        ("bpe", "foxdog", ["Ġfox", "do", "g"]),
        ("wordpiece", "The fox.", ["the", "fox", "."]),
        ("wordpiece", "over-jump", ["over", "-", "jump"]),
        ("word", "The dog's over-jump, café!", ["the", "dog", "'", "s", "over", "-", "jump", "[UNK]", "café", "!"]),
        ("word", "foxdog 日本 🎉", ["[UNK]", "日本", "🎉"]),
    ],
)
def test_train_tokenizer_kinds_split_as_documented(
    trained: dict[str, FastTokenizer], kind: str, text: str, expected: list[str]
) -> None:
    assert tokens(trained[kind], text) == expected


def test_train_tokenizer_unigram_pieces_make_up_the_text(trained: dict[str, FastTokenizer]) -> None:
    assert "".join(tokens(trained["unigram"], "The dog [MASK]")) == "▁the▁dog▁[mask]"


@pytest.mark.parametrize("kind", KINDS)
def test_train_tokenizer_special_tokens_come_first(trained: dict[str, FastTokenizer], kind: str) -> None:
    assert [trained[kind].token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3]
    size = trained[kind].get_vocab_size()
    assert len(SPECIAL_TOKENS) < size <= 400
    assert sorted(trained[kind].get_vocab().values()) == list(range(size))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("special", SPECIAL_TOKENS)
@pytest.mark.parametrize("lowercase", [True, False])
def test_encode_special_tokens_in_text_are_ordinary(kind: str, special: str, lowercase: bool) -> None:
    tokenizer = train_tokenizer(config(kind, lowercase=lowercase), [*TEXTS, *SPECIAL_TOKENS * 3])
    found = tokens(tokenizer, f"a{special} {special} {special}b")
    assert special not in found or special == "[UNK]"  # which stands for a bracket that was never seen
    assert len(found) >= 9
    assert len(tokens(parse_tokenizer(tokenizer.to_str()), special)) >= 3


@pytest.mark.parametrize(
    "text", ["日本語のテキスト", "🎉🎊👩‍👩‍👧", "a\u0300\u0301\u0302", "\x00\x01\u200b\ufeff", "\U0010ffff", "ß" * 500]
)
@pytest.mark.parametrize("kind", KINDS)
def test_encode_any_text_has_ids(trained: dict[str, FastTokenizer], kind: str, text: str) -> None:
    (ids,) = ids_of(trained[kind], [(text,)], max_length=10_000)
    assert ids
    assert all(0 <= token < trained[kind].get_vocab_size() for token in ids)
    if kind == "bpe":
        assert 1 not in ids


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("settings", "same", "differ"),
    [
        ({}, ("CAFÉ", "cafe\u0301"), ("café", "cafe")),
        ({"lowercase": False}, ("café", "cafe\u0301"), ("THE", "the")),
        ({"normalize": "nfkc"}, ("ﬁx ２", "fix 2"), ("café", "cafe")),
        ({"normalize": "none"}, ("The", "the"), ("café", "cafe\u0301")),
    ],
)
def test_train_tokenizer_applies_normal_forms(
    kind: str, settings: dict[str, Any], same: tuple[str, str], differ: tuple[str, str]
) -> None:
    texts = [*TEXTS, *same, *differ, "fix 2", "cafe"] * 2
    tokenizer = train_tokenizer(config(kind, **settings), texts)
    assert tokens(tokenizer, same[0]) == tokens(tokenizer, same[1])
    assert tokens(tokenizer, differ[0]) != tokens(tokenizer, differ[1])


@pytest.mark.parametrize("kind", ["bpe", "word"])
def test_train_tokenizer_twice_is_the_same(kind: str) -> None:
    noise = np.random.default_rng(0)
    words = ["".join(noise.choice(list("abcdefgh"), 4)) for _ in range(300)]
    texts = [" ".join(noise.choice(words, 20)) for _ in range(200)]
    one, two = (train_tokenizer(config(kind), iter(texts)) for _ in range(2))
    assert one.to_str() == two.to_str()
    assert tokenizer_hash(one) == tokenizer_hash(two) != tokenizer_hash(train_tokenizer(config(kind), texts[1:]))


@pytest.mark.parametrize("kind", ["wordpiece", "word", "bpe"])
def test_train_tokenizer_rare_words_have_no_token(kind: str) -> None:
    tokenizer = train_tokenizer(config(kind, min_frequency=3), ["often often often seldom seldom"])
    assert {"often", "Ġoften"} & set(tokenizer.get_vocab())
    assert not {"seldom", "Ġseldom"} & set(tokenizer.get_vocab())


# ------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "word"])
def test_train_tokenizer_without_frequent_tokens_is_refused(kind: str) -> None:
    with pytest.raises(DataError, match=r"`tokenizer\.min_frequency`: no token occurs 2 times in the training texts"):
        train_tokenizer(config(kind, min_frequency=2), [])


def test_train_tokenizer_too_small_vocabulary_is_refused() -> None:
    with pytest.raises(DataError, match=r"`tokenizer\.vocab_size`: 16 is too small for the characters"):
        train_tokenizer(config("unigram", vocab_size=16), ["abcdefghijklmnopqrstuvwxyz"] * 3)


# ------------------------------------------------------------------------------------------------------------ from file


def from_file(path: Path) -> FastTokenizer:
    return train_tokenizer(Tokenizer(kind="file", file=str(path)), [])


@pytest.mark.parametrize("kind", KINDS)
def test_train_tokenizer_file_is_read(tmp_path: Path, trained: dict[str, FastTokenizer], kind: str) -> None:
    path = tmp_path / "tokenizer.json"
    trained[kind].save(str(path))
    loaded = from_file(path)
    assert tokenizer_hash(loaded) == tokenizer_hash(trained[kind])
    assert ids_of(loaded, [(text,) for text in TEXTS]) == ids_of(trained[kind], [(text,) for text in TEXTS])


def test_parse_tokenizer_drops_padding_and_truncation(tmp_path: Path, trained: dict[str, FastTokenizer]) -> None:
    tokenizer = FastTokenizer.from_str(trained["word"].to_str())
    tokenizer.enable_padding(length=50)
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert ids_of(from_file(tmp_path / "tokenizer.json"), [("the fox [PAD]",)]) == ids_of(
        trained["word"], [("the fox [PAD]",)]
    )


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"version": "1.0"}', "[1]"])
def test_train_tokenizer_invalid_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(DataError, match=r"`tokenizer\.file`: `.*t\.json` cannot be read by the `tokenizers` library"):
        from_file(tmp_path / "t.json")


def test_vocab_size_counts_gaps_between_ids(tmp_path: Path) -> None:
    content = json.loads(foreign("<unk>").to_str())
    content["model"]["vocab"]["cat"] = 7
    (tmp_path / "t.json").write_text(json.dumps(content))
    loaded = from_file(tmp_path / "t.json")
    assert ids_of(loaded, [("fox cat",)]) == [[1, 7]]
    assert (loaded.get_vocab_size(), vocab_size(loaded)) == (4, 8)


def test_train_tokenizer_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"`tokenizer\.file`: `.*t\.json` does not exist"):
        from_file(tmp_path / "t.json")


def foreign(*names: str) -> FastTokenizer:
    """Return a foreign tokenizer of whole words, with its own special tokens."""
    vocab = {name: number for number, name in enumerate([*names, "fox", "dog"])}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": names[0] if names else "fox"}
    content = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": model}
    return parse_tokenizer(json.dumps({"normalizer": None, "post_processor": None, "decoder": None, **content}))


def test_encode_accepts_other_names_of_special_tokens() -> None:
    tokenizer = foreign("<unk>", "</s>")
    assert ids_of(tokenizer, [("fox", "dog"), ("", "dog")]) == [[2, 1, 3], [1, 3]]
    assert ids_of(tokenizer, [("",)]) == [[0]]
    assert ids_of(foreign("<pad>"), [("",)]) == [[0]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("fox", "dog"), r"no `\[SEP\]` token, which joins several text columns"),
        ((" ",), r"no `\[UNK\]` token, which represents a text without tokens"),
    ],
)
def test_encode_missing_special_token_is_refused(row: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        encode(WordCache(foreign()), [row], 10)


# ------------------------------------------------------------------------------------------------------------- encoding


def test_encode_joins_columns_by_a_separator(trained: dict[str, FastTokenizer]) -> None:
    rows = [("the fox", "the dog", "!"), ("the fox", "", "dog"), ("", "", ""), ("[SEP]", "the", "")]
    word = {token: trained["word"].token_to_id(token) for token in ("the", "fox", "dog", "!")}
    the, fox, dog, mark = word.values()
    *first, last = ids_of(trained["word"], rows)
    assert first == [[the, fox, 2, the, dog, 2, mark], [the, fox, 2, 2, dog], [2, 2]]
    assert last == [1, 1, 1, 2, the, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_encode_columns_are_tokenized_apart(trained: dict[str, FastTokenizer], kind: str) -> None:
    (one,), (two,), (both,) = (ids_of(trained[kind], [row]) for row in [("fox",), ("dog",), ("fox", "dog")])
    assert both == [*one, 2, *two]


@pytest.mark.parametrize("max_length", [1, 2, 3, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_encode_truncates_and_returns_full_lengths(
    trained: dict[str, FastTokenizer], kind: str, max_length: int
) -> None:
    rows = [("the quick brown fox",), ("",), ("the",), (" \n",), ("dog fox",)]
    whole = [trained[kind].encode(text, add_special_tokens=False).ids for (text,) in rows]
    ids, full_lengths = encode(WordCache(trained[kind]), rows, max_length)
    assert ids.type == pa.list_(pa.int32())
    assert full_lengths.dtype == np.int64
    assert full_lengths.tolist() == list(map(len, whole))
    assert ids.to_pylist() == [row[:max_length] or [1] for row in whole]


@pytest.mark.parametrize("kind", KINDS)
def test_encode_without_rows_is_empty(trained: dict[str, FastTokenizer], kind: str) -> None:
    ids, full_lengths = encode(WordCache(trained[kind]), [], 10)
    assert (len(ids), ids.type, full_lengths.tolist()) == (0, pa.list_(pa.int32()), [])


def test_encode_row_does_not_depend_on_other_rows(trained: dict[str, FastTokenizer]) -> None:
    rows = [(text,) for text in [*TEXTS, ""]]
    for kind in KINDS:
        assert ids_of(trained[kind], rows, 7) == [ids_of(trained[kind], [row], 7)[0] for row in rows]


# ------------------------------------------------------------------------------------------------------------- the cut


@pytest.mark.parametrize("lengths", [(5, 5), (1, 90), (90, 1), (0, 90), (30, 20, 40), (3, 3, 3), (7,), (0, 0)])
@pytest.mark.parametrize("room", [3, 4, 9, 10, 25, 89, 200])
def test_column_sizes_longest_column_is_truncated_first(lengths: tuple[int, ...], room: int) -> None:
    rooms = column_sizes(lengths, room)
    assert sum(rooms) == min(room, sum(lengths))
    assert all(0 <= kept <= length for kept, length in zip(rooms, lengths, strict=True))
    assert all(kept > 0 for kept, length in zip(rooms, lengths, strict=True) if length)
    cut = [kept for kept, length in zip(rooms, lengths, strict=True) if kept < length]
    # No column that was cut keeps less than another does, give or take what cannot be shared out.
    assert not cut or max(rooms) - min(cut) <= 1


@pytest.mark.parametrize(
    ("truncation", "room", "expected"),
    [
        (Truncation(), 8, [[0, 1, 2, 3], [20, 21, 22]]),
        (Truncation(mode="tail"), 8, [[6, 7, 8, 9], [20, 21, 22]]),
        (Truncation(mode="head_tail"), 8, [[0, 7, 8, 9], [20, 21, 22]]),
        (Truncation(mode="windows", window_overlap=2, max_windows=2), 5, [[0, 1, 2, 3], [20, 21, 22]]),
        (Truncation(columns="end"), 8, [[0, 1, 2, 3, 4, 5, 6, 7]]),
        (Truncation(), 2, [[0, 1]]),
        (Truncation(), 3, [[0], [20]]),
        (Truncation(), 99, [list(range(10)), [20, 21, 22]]),
    ],
)
def test_encode_two_columns_are_truncated_by_mode(truncation: Truncation, room: int, expected: list[list[int]]) -> None:
    words = {"[PAD]": 100, "[UNK]": 101, "[SEP]": 102} | {f"w{number}": number for number in range(30)}
    tokenizer = FastTokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    row = " ".join(f"w{number}" for number in range(10)), "w20 w21 w22"
    ids, full_lengths = encode(WordCache(tokenizer), [row], room, truncation)
    joined = [token for column in expected for token in [*column, 102]][:-1]
    assert ids.to_pylist() == [joined]
    assert full_lengths.tolist() == [14]

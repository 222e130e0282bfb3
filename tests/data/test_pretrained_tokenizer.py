"""Tokenizers of pretrained models: the same tokens as Transformers gives."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.helpers.encoders import ALL, TEXTS, write_encoder
from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.core.errors import ConfigError
from txclf.data import pretrained_tokenizer
from txclf.data.batches import TokenRows
from txclf.data.sampler import Layout
from txclf.data.tokenizer import encode, parse_tokenizer
from txclf.data.word_cache import WordCache

HOSTILE = [
    *["", " ", "  ", "\n", "\0", "\u200b", "\u200d", "\ufeff", "\u00ad", "\u0301", "\U000e0041", "\ufffd", "\uffff"],
    *["a\u0301b  c", "\u0301a b\u0301 \u0301 c", "\ufeffx\u00a0y", "tab\tnew\nline ", "\r\n\v\f\x1c\x85\u2028\u2029z"],
    *["[SEP] [CLS]</s><pad>", "a[MASK]b <s> <|endoftext|>", "[PAD", "##a ## a", "▁a ▁ _a", "Ġa Ċ"],
    *[
        "\u202eright to left\u202c",
        "שלום עליכם",
        "العَرَبِيَّة",
        "हिन्दी",
        "ไทยไม่มีช่องว่าง",
        "한국어 \u1112\u1161\u11ab",
        "東京 都 Tokyo東京",
    ],
    *["İstanbul ΣΊΣΥΦΟΣ ẞ ǅ ŉ", "ﬁ ½ ① ㎏ ㍿ Ⅷ", "Z̸̡͝a̴l̷g̶o̸ text", "👩‍👩‍👧‍👦 🇩🇪 👍🏽", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ｆｕｌｌ　ｗｉｄｔｈ"],
    *[
        "don't can't it's 'tis we'll",
        "3.14 1,000 10^6 -1 +1",
        "http://x.y/z?q=1&r=%20#a",
        "a" * 120,
        "x " * 60,
        "!" * 50,
    ],
]
"""Texts whose tokens a cache of words may get wrong."""


def make_run(encoder: str, **settings: Any) -> RunConfig:
    """Return a run on a pretrained model."""
    return run_config.parse({"model": {"pretrained": encoder}, "tokenizer": {"max_length": 40}, **settings})


def sequences(run: RunConfig, texts: list[tuple[str, ...]]) -> list[tuple[list[int], list[int]]]:
    """Return the token ids and token types of rows of text columns, as the network receives them."""
    content, special = pretrained_tokenizer.load(run)
    ids, _ = encode(WordCache(parse_tokenizer(content)), texts, run.tokenizer.max_length, run.truncation, special)
    layout = Layout.of_model(run.tokenizer.max_length, run.truncation, special, None)
    rows = TokenRows([pa.table({"input_ids": ids})], layout=layout)
    result = []
    for row in range(len(texts)):
        padded = rows.pad(np.array([row]))
        types = padded.segments if padded.segments is not None else padded.input_ids * 0
        result.append((padded.input_ids[0].tolist(), types[0].tolist()))
    return result


@pytest.mark.parametrize("architecture", ALL)
def test_tokens_are_those_of_transformers(tmp_path: Path, architecture: str) -> None:
    from transformers import AutoTokenizer

    encoder = write_encoder(tmp_path, architecture)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    texts = [*TEXTS, *HOSTILE, *(f"fox {text} dog" for text in HOSTILE), " ".join(HOSTILE)]
    ours = sequences(make_run(encoder), [(text,) for text in texts])
    # Special tokens inside a text are ordinary characters.
    expected = [tokenizer(text, split_special_tokens=True)["input_ids"] for text in texts]
    _, special = pretrained_tokenizer.load(make_run(encoder))
    end = list(special.suffix)
    truncated = [ids if len(ids) <= 40 else ids[: 40 - len(end)] + end for ids in expected]
    # A network needs a token, also where the tokenizer gives none.
    assert [ids for ids, _ in ours] == [ids or [special.pad] for ids in truncated]


@pytest.mark.parametrize("architecture", ["bert", "albert"])
def test_each_odd_character_has_the_tokens_of_transformers(tmp_path: Path, architecture: str) -> None:
    from transformers import AutoTokenizer

    encoder = write_encoder(tmp_path, architecture)
    odd = [sign for sign in map(chr, range(0x30000)) if unicodedata.category(sign) not in ("Lo", "Cs", "Cn", "Co")]
    texts = [f"a{a} b {b}c {c} d {a}{b}" for a, b, c in zip(odd, odd[7:] + odd[:7], odd[::-1], strict=True)]
    tokenizer: Any = AutoTokenizer.from_pretrained(encoder)
    content, _ = pretrained_tokenizer.load(make_run(encoder))
    cache = WordCache(parse_tokenizer(content))
    assert cache.usable == (architecture == "bert")  # albert replaces runs of spaces first
    ids, lengths = cache.encode(texts)
    expected = tokenizer(texts, split_special_tokens=True, add_special_tokens=False)["input_ids"]
    assert [row.tolist() for row in np.split(ids, np.cumsum(lengths)[:-1])] == expected


@pytest.mark.parametrize("architecture", ALL)
def test_pairs_are_those_of_transformers(tmp_path: Path, architecture: str) -> None:
    from transformers import AutoTokenizer

    encoder = write_encoder(tmp_path, architecture)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    pairs = [("the quick fox", "jumps"), ("", "lazy dog"), ("boxing", ""), ("", "")]
    ours = sequences(make_run(encoder, data={"text": ["first", "second"]}), list(pairs))
    for (ids, types), pair in zip(ours, pairs, strict=True):
        expected = tokenizer([pair[0]], [pair[1]])  # alone, an empty second text would count as none
        assert ids == (expected["input_ids"][0] or [pretrained_tokenizer.load(make_run(encoder))[1].pad])
        assert types == expected.get("token_type_ids", [[0] * len(ids)])[0]


@pytest.mark.parametrize("mode", ["head", "tail", "head_tail", "windows"])
def test_each_sequence_has_the_special_tokens(tmp_path: Path, mode: str) -> None:
    run = make_run(write_encoder(tmp_path), data={"truncation": mode, "window_overlap": 2}, tokenizer={"max_length": 8})
    content, special = pretrained_tokenizer.load(run)
    text = "the quick brown fox jumps over the lazy dog five boxing wizards"
    ids, _ = encode(WordCache(parse_tokenizer(content)), [(text,)], 8, run.truncation, special)
    plain = parse_tokenizer(content).encode(text, add_special_tokens=False).ids
    rows = TokenRows([pa.table({"input_ids": ids})], layout=Layout.of_model(8, run.truncation, special, None))
    padded = rows.pad(np.array([0])).input_ids.tolist()
    assert all(row[0] == 2 and row[-1] == 3 and len(row) == 8 for row in padded)
    starts = {"head": [plain[:6]], "tail": [plain[-6:]], "head_tail": [plain[:2] + plain[-4:]]}
    assert [row[1:-1] for row in padded][:1] == starts.get(mode, [plain[:6]])
    assert len(padded) == (1 if mode != "windows" else len(rows.layout.spans(rows.lengths)[0]))


def test_length_above_the_positions_is_refused(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path, "roberta")
    with pytest.raises(ConfigError, match=r"`tokenizer.max_length` \(41\) is more than the 40 tokens"):
        pretrained_tokenizer.load(make_run(encoder, tokenizer={"max_length": 41}))


def test_window_overlap_of_all_tokens_of_a_text_is_refused(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path)  # with two special tokens
    settings: dict[str, Any] = {"data": {"truncation": "windows", "window_overlap": 6}, "tokenizer": {"max_length": 8}}
    with pytest.raises(
        ConfigError, match=r"`data.window_overlap` \(6\) must be less than the 6 tokens .* at most 5\.$"
    ):
        pretrained_tokenizer.load(make_run(encoder, **settings))
    settings["data"]["window_overlap"] = 5
    pretrained_tokenizer.load(make_run(encoder, **settings))


def changed(folder: str, name: str, **values: Any) -> None:
    """Change values in a JSON file of a folder."""
    path = Path(folder, name)
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(folder: str) -> str:
    """Return the message of the error."""
    with pytest.raises(ConfigError) as raised:
        pretrained_tokenizer.load(make_run(folder))
    return str(raised.value)


def test_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
        assert re.search(r"the tokenizer of `.*` cannot be loaded: .* Set a folder with a `tok", refused(encoder))


def test_tokenizer_in_python_is_refused(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text('{"<unk>": 0, "<pad>": 1, "<s>": 2, "</s>": 3, "a</w>": 4}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    changed(encoder, "tokenizer_config.json", tokenizer_class="CTRLTokenizer")
    assert "written in Python" in refused(encoder)


def test_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path)
    size = 1 + max(json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"].values())
    changed(encoder, "config.json", vocab_size=size)
    pretrained_tokenizer.load(make_run(encoder))
    changed(encoder, "config.json", vocab_size=size - 1)
    assert f"has tokens up to number {size - 1}, but the model has only {size - 1} embeddings" in refused(encoder)


def test_configuration_with_impossible_values_is_refused(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path)
    changed(encoder, "config.json", hidden_size="wide")
    assert re.search(r"the `config.json` of `.*` cannot be used: .* Copy the folder again", refused(encoder))


def test_tokenizer_without_padding_takes_another_special_token(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path, "llama")
    assert pretrained_tokenizer.load(make_run(encoder))[1].pad == 2  # </s>
    changed(encoder, "tokenizer_config.json", eos_token=None)
    assert "has no token for padding" in refused(encoder)

"""Tiny pretrained models of several architectures: random weights, real tokenizers, in folders as the hub has them."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from txclf.config import run_config
from txclf.config.run_config import RunConfig

ARCHITECTURES = ("bert", "roberta", "modernbert", "distilbert")
"""Encoders that most tests of parity go through."""
DECODERS = ("gpt2", "llama", "qwen2")
ALL = (*ARCHITECTURES, "electra", "deberta-v2", "xlm-roberta", "mpnet", "albert", *DECODERS)
TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "five boxing wizards jump quickly",
    "How vexingly quick daft zebras jump!",
    "naïve façade, 東京 and Straße: 1,234.5 items",
] * 8
SIZES = {
    "vocab_size": 400,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
_OFFSET = {"max_position_embeddings": 42}
_NO_TYPES = {"type_vocab_size": 0}
_DISENTANGLED = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_biased_input": False,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_buckets": 8,
}
_CONFIGS: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "roberta": SIZES | _OFFSET | {"type_vocab_size": 1},
    "modernbert": SIZES | {"local_attention": 8},
    "distilbert": {
        "vocab_size": 400,
        "dim": 32,
        "n_layers": 3,
        "n_heads": 4,
        "hidden_dim": 48,
        "max_position_embeddings": 40,
    },
    "electra": SIZES | {"embedding_size": 16},
    "deberta-v2": SIZES | _NO_TYPES | _DISENTANGLED,
    "xlm-roberta": SIZES | _OFFSET | {"type_vocab_size": 1},
    "mpnet": SIZES | _OFFSET,
    "albert": SIZES | {"embedding_size": 16},
    "gpt2": {"vocab_size": 400, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 40},
    "llama": SIZES | {"num_key_value_heads": 2},
    "qwen2": SIZES | {"num_key_value_heads": 2, "tie_word_embeddings": True},
}
"""Configurations by `model_type`: small sizes, and what real models of the type set."""
_BERT_NAMES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ROBERTA_NAMES = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def write_encoder(folder: Path, architecture: str = "bert", *, texts: list[str] = TEXTS, **settings: Any) -> str:
    """Write a tiny model with its tokenizer and return its folder. `settings` replace those of its configuration.

    The `tokenizer.json` truncates and pads to 8 tokens, as that of MiniLM does to 128.
    """
    torch.manual_seed(1)
    tokenizer = _tokenizer(architecture, texts)
    names = ("pad_token_id", "cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id")
    ids = {name: getattr(tokenizer, name) for name in names if architecture not in ("bert", "distilbert")}
    ids["pad_token_id"] = tokenizer.pad_token_id
    for_model: Any = AutoConfig.for_model
    make: Any = AutoModel.from_config
    model = make(for_model(architecture, **{**_CONFIGS.get(architecture, SIZES), **ids, **settings}))
    with torch.no_grad():  # so that tokens, positions and types matter in the logits
        for parameter in model.parameters():
            parameter.normal_(std=0.2) if parameter.ndim > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    pad = next((token for token in content["added_tokens"] if token["id"] == tokenizer.pad_token_id), None)
    content["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    if pad is not None:
        content["padding"] = {
            "strategy": {"Fixed": 8},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": pad["id"],
            "pad_type_id": 0,
            "pad_token": pad["content"],
        }
    path.write_text(json.dumps(content))
    return os.fspath(folder)


def as_sentence_encoder(folder: str, content: dict[str, Any] | None = None) -> str:
    """Make a folder one of sentence-transformers that pools by the mean, and return it."""
    os.makedirs(f"{folder}/1_Pooling")
    modes = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}
    Path(folder, "1_Pooling", "config.json").write_text(
        json.dumps(content or {"word_embedding_dimension": 32, **modes})
    )
    return folder


def _tokenizer(architecture: str, texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer of the kind that models of the architecture have."""
    if architecture in ("bert", "distilbert", "electra"):
        return _fast(_word_piece(texts, _BERT_NAMES), _BERT_NAMES, with_types=architecture != "distilbert")
    if architecture == "mpnet":
        return _fast(_word_piece(texts, _ROBERTA_NAMES), _ROBERTA_NAMES)
    if architecture in ("albert", "deberta-v2"):
        return _fast(_unigram(texts, _BERT_NAMES, []), _BERT_NAMES, with_types=architecture == "albert")
    if architecture == "xlm-roberta":
        # A table of SentencePiece without entries: the size of its trie, and the trie.
        table = normalizers.Precompiled(struct.pack("<I", 1024) + bytes(1024))
        return _fast(_unigram(texts, _ROBERTA_NAMES, [table]), _ROBERTA_NAMES)
    tokenizer = _byte_level(texts)
    if architecture in ("roberta", "modernbert"):
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
        return _fast(tokenizer, _ROBERTA_NAMES)
    fast: Any = PreTrainedTokenizerFast
    if architecture == "llama":  # a token in front of a text only, and none for padding
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B:1", special_tokens=[("<s>", 0)]
        )
        return fast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")  # type: ignore[no-any-return]
    if architecture == "qwen2":
        words = Regex(r"\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|[^\r\n\p{L}\p{N}]?\p{L}+|\s+")
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(words, "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        return fast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>")  # type: ignore[no-any-return]
    return fast(tokenizer_object=tokenizer, eos_token="</s>")  # type: ignore[no-any-return]  # gpt2


def _fast(tokenizer: Tokenizer, names: tuple[str, ...], with_types: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer of Transformers with the special tokens of BERT or RoBERTa."""
    if names is _BERT_NAMES:
        pad, unknown, begin, end, mask = names
    else:
        begin, pad, end, unknown, mask = names
    fast: Any = PreTrainedTokenizerFast
    return fast(  # type: ignore[no-any-return]
        tokenizer_object=tokenizer,
        bos_token=begin,
        cls_token=begin,
        pad_token=pad,
        eos_token=end,
        sep_token=end,
        unk_token=unknown,
        mask_token=mask,
        model_input_names=["input_ids", *(["token_type_ids"] if with_types else []), "attention_mask"],
    )


def _template(names: tuple[str, ...]) -> processors.PostProcessor:
    """Return the special tokens around a text and between two texts, as BERT or RoBERTa has them."""
    if names is _BERT_NAMES:
        return processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )


def _word_piece(texts: list[str], names: tuple[str, ...]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token=names[1 if names is _BERT_NAMES else 3]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=list(names), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = _template(names)
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _unigram(texts: list[str], names: tuple[str, ...], steps: list[normalizers.Normalizer]) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    unknown = names[1 if names is _BERT_NAMES else 3]
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=list(names), unk_token=unknown, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = _template(names)
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def _byte_level(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(_ROBERTA_NAMES),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def make_run(folder: Path, data: str, encoder: str, *overrides: str) -> RunConfig:
    """Return a short run in full precision."""
    settings = {
        "name": "tuned",
        "storage": os.fspath(folder / "runs"),
        "data": {"train": data},
        "tokenizer": {"max_length": 16},
        "model": {"pretrained": encoder},
        "train": {"epochs": 2, "precision": "fp32"},
    }
    return run_config.parse(run_config.override(settings, overrides))

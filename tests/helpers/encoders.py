"""Tiny pretrained models of several architectures: random weights, real tokenizers, in folders as the hub has them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

ARCHITECTURES = ("bert", "roberta", "modernbert", "distilbert")
"""Encoders that every test of parity goes through."""
TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "five boxing wizards jump quickly",
    "How vexingly quick daft zebras jump!",
    "naïve façade, 東京 and Straße: 1,234.5 items",
] * 8
SIZES = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}


def write_encoder(folder: Path, architecture: str = "bert", *, texts: list[str] = TEXTS, **settings: Any) -> str:
    """Write a tiny model with its tokenizer and return its folder. `settings` replace those of its configuration.

    The `tokenizer.json` truncates and pads to 8 tokens, as that of MiniLM does to 128.
    """
    torch.manual_seed(1)
    has_bytes = architecture in ("roberta", "modernbert", "gpt2")
    tokenizer = _byte_level(texts) if has_bytes else _word_piece(texts, architecture == "bert")
    config = _config(architecture, tokenizer, settings)
    make: Any = AutoModel.from_config
    model = make(config)
    with torch.no_grad():  # so that tokens, positions and types matter in the logits
        for parameter in model.parameters():
            parameter.normal_(std=0.2) if parameter.ndim > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    pad = content["added_tokens"][1 if architecture == "roberta" else 0]
    content["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
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


def _config(architecture: str, tokenizer: PreTrainedTokenizerFast, settings: dict[str, Any]) -> Any:
    pad = {"pad_token_id": tokenizer.pad_token_id}
    if architecture == "bert":
        return BertConfig(**{**SIZES, "intermediate_size": 48, "max_position_embeddings": 40, **pad, **settings})
    if architecture == "roberta":
        sizes = {"intermediate_size": 48, "max_position_embeddings": 42, "type_vocab_size": 1}
        return RobertaConfig(**{**SIZES, **sizes, **pad, **settings})
    if architecture == "distilbert":
        sizes = {"vocab_size": 400, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48}
        return DistilBertConfig(**{**sizes, "max_position_embeddings": 40, **pad, **settings})
    if architecture == "gpt2":
        sizes = {"vocab_size": 400, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 40}
        return GPT2Config(**{**sizes, "bos_token_id": 0, "eos_token_id": 0, **settings})
    ends = {"cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
    ends |= {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    sizes = {"intermediate_size": 48, "max_position_embeddings": 40, "local_attention": 8}
    return ModernBertConfig(**{**SIZES, **sizes, **ends, **pad, **settings})


def _word_piece(texts: list[str], with_types: bool) -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.decoder = decoders.WordPiece()
    fast: Any = PreTrainedTokenizerFast
    return fast(  # type: ignore[no-any-return]
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", *(["token_type_ids"] if with_types else []), "attention_mask"],
    )


def _byte_level(texts: list[str]) -> PreTrainedTokenizerFast:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast: Any = PreTrainedTokenizerFast
    return fast(  # type: ignore[no-any-return]
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
    )

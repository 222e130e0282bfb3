"""The tokenizer of a pretrained model, as a `tokenizer.json` and the special tokens around a text.

Transformers reads the folder once, because a `tokenizer.json` alone does not hold all settings. After that the
`tokenizers` library does the work. Truncation and padding that a `tokenizer.json` carries inside are switched off.
"""

from __future__ import annotations

from typing import Any

from txclf import pretrained
from txclf.config.run_config import RunConfig
from txclf.config.sections import SpecialTokens
from txclf.core.errors import ConfigError
from txclf.data.tokenizer import parse_tokenizer, text_tokens

_OFFSET_POSITIONS = (
    "roberta",
    "xlm-roberta",
    "camembert",
    "mpnet",
    "xlm-roberta-xl",
    "roberta-prelayernorm",
    "longformer",
    "data2vec-text",
    "ibert",
    "xmod",
)
"""Types of models that number positions from the padding id + 1, as RoBERTa does."""


def load(run: RunConfig) -> tuple[str, SpecialTokens]:
    """Return the tokenizer of `model.pretrained` and its special tokens.

    Raises `ConfigError` if the model is not found, has no fast tokenizer, or reads fewer than `tokenizer.max_length`
    tokens.
    """
    name = run.model.pretrained
    assert name is not None
    with pretrained.located(name, run.model.revision, weights=False) as found:
        from transformers import AutoConfig, AutoTokenizer

        try:
            config = AutoConfig.from_pretrained(found.folder, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # Transformers raises any kind for values that it cannot use
            raise ConfigError(
                f"`model.pretrained`: the `{pretrained.CONFIG}` of `{name}` cannot be used: {_first_line(error)}. "
                "Copy the folder again."
            ) from None
        try:
            tokenizer = AutoTokenizer.from_pretrained(found.folder, trust_remote_code=False, local_files_only=True)
            content = _content(tokenizer)
        except Exception as error:  # Transformers and tokenizers raise any kind for files that they cannot read
            raise ConfigError(
                f"`model.pretrained`: the tokenizer of `{name}` cannot be loaded: {_first_line(error)}. "
                "Set a folder with a `tokenizer.json`."
            ) from None
    special = special_tokens(tokenizer, config)
    _check_vocabulary(content, special, config.vocab_size, name)
    _check_length(run, special, max_positions(config))
    return content, special


def _content(tokenizer: Any) -> str:
    """Return the `tokenizer.json` of a tokenizer of Transformers, without truncation and padding."""
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError("it is written in Python, so it has no `tokenizer.json`")
    parsed = parse_tokenizer(tokenizer.backend_tokenizer.to_str())
    if not text_tokens(parsed):  # Transformers makes an empty tokenizer where there is no file of one
        raise ValueError("it has no vocabulary")
    return parsed.to_str()


def special_tokens(tokenizer: Any, config: Any) -> SpecialTokens:
    """Return what a tokenizer of Transformers puts around a text and between two texts.

    Raises `ConfigError` for a tokenizer that does more than that.
    """
    single, pair = tokenizer("a", add_special_tokens=True), tokenizer("a", "a", add_special_tokens=True)
    inner = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    ids, pair_ids = list(single["input_ids"]), list(pair["input_ids"])
    start = _find(ids, inner)
    prefix, suffix = ids[:start], ids[start + len(inner) :]
    between = pair_ids[len(prefix) + len(inner) : len(pair_ids) - len(suffix) - len(inner)]
    if pair_ids != [*prefix, *inner, *between, *inner, *suffix]:
        raise ConfigError(
            "`model.pretrained`: its tokenizer joins two texts in a way that is not supported. Choose another model."
        )
    named = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)  # decoders have no padding
    pad = next((token for token in named if token is not None), None)
    if pad is None:
        raise ConfigError(
            "`model.pretrained`: its tokenizer has no token for padding. Set `pad_token` in its "
            "`tokenizer_config.json`."
        )
    types = list(pair.get("token_type_ids", [0]))
    has_types = max(types) > 0 and getattr(config, "type_vocab_size", 0) > 1
    usual = [0] * (len(prefix) + len(inner) + 1) + [1] * (len(inner) + len(suffix))  # as BERT has them
    if has_types and (max(single["token_type_ids"]) or types != usual):
        raise ConfigError(
            "`model.pretrained`: its tokenizer numbers two texts in a way that is not supported. Choose another model."
        )
    return SpecialTokens(
        prefix=tuple(prefix),
        separator=tuple(between),
        suffix=tuple(suffix),
        pad=int(pad),
        token_types=1 + max(types) if has_types else 0,
    )


def max_positions(config: Any) -> int | None:
    """Return how many tokens a model reads at most; None if its positions have no limit."""
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    return positions - (config.pad_token_id or 0) - 1 if config.model_type in _OFFSET_POSITIONS else positions


def _check_vocabulary(content: str, special: SpecialTokens, size: int, name: str) -> None:
    """Raise `ConfigError` if a text can have a token that the model has no embedding for."""
    added = {*special.prefix, *special.separator, *special.suffix, special.pad}
    highest = max(text_tokens(parse_tokenizer(content)) | added)
    if highest >= size:
        raise ConfigError(
            f"`model.pretrained`: the tokenizer of `{name}` has tokens up to number {highest}, but the model has only "
            f"{size} embeddings. Set a folder whose tokenizer and `{pretrained.CONFIG}` belong together."
        )


def _check_length(run: RunConfig, special: SpecialTokens, positions: int | None) -> None:
    length = run.tokenizer.max_length
    if positions is not None and length > positions:
        raise ConfigError(
            f"`tokenizer.max_length` ({length}) is more than the {positions} tokens that `{run.model.pretrained}` "
            f"reads. Set at most {positions}, or `data.truncation: windows` with windows of that size."
        )
    if length <= special.added + len(special.separator) * (len(run.data.text) - 1):
        raise ConfigError(f"`tokenizer.max_length` ({length}) leaves no room beside the special tokens. Raise it.")
    overlap, room = run.truncation.window_overlap, length - special.added
    if overlap >= room:
        raise ConfigError(
            f"`data.window_overlap` ({overlap}) must be less than the {room} tokens of a text in a window of "
            f"`tokenizer.max_length` ({length}). Set at most {room - 1}."
        )


def _find(ids: list[int], inner: list[int]) -> int:
    for start in range(len(ids) - len(inner) + 1):
        if ids[start : start + len(inner)] == inner:
            return start
    raise ConfigError(
        "`model.pretrained`: its tokenizer changes texts as it adds special tokens. Choose another model."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")

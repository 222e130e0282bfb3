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
from txclf.data.tokenizer import parse_tokenizer

_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet", "xlm-roberta-xl", "roberta-prelayernorm")
"""Types of models that number positions from the padding id + 1, as RoBERTa does."""


def load(run: RunConfig) -> tuple[str, SpecialTokens]:
    """Return the tokenizer of `model.pretrained` and its special tokens.

    Raises `ConfigError` if the model is not found, has no fast tokenizer, or reads fewer than `tokenizer.max_length`
    tokens.
    """
    name = run.model.pretrained
    assert name is not None
    with pretrained.located(name, run.model.revision) as found:
        from transformers import AutoConfig, AutoTokenizer

        config = AutoConfig.from_pretrained(found.folder, trust_remote_code=False, local_files_only=True)
        try:
            tokenizer = AutoTokenizer.from_pretrained(found.folder, trust_remote_code=False, local_files_only=True)
            content = parse_tokenizer(tokenizer.backend_tokenizer.to_str()).to_str()
        except Exception as error:  # Transformers and tokenizers raise any kind for files that they cannot read
            raise ConfigError(
                f"`model.pretrained`: the tokenizer of `{name}` cannot be loaded: {_first_line(error)} "
                "Set a folder with a `tokenizer.json`."
            ) from None
    special = special_tokens(tokenizer, config)
    _check_length(run, special, max_positions(config))
    return content, special


def special_tokens(tokenizer: Any, config: Any) -> SpecialTokens:
    """Return what a tokenizer of Transformers puts around a text and between two texts."""
    single, pair = tokenizer("a", add_special_tokens=True), tokenizer("a", "a", add_special_tokens=True)
    (inner,) = {tuple(tokenizer("a", add_special_tokens=False)["input_ids"])}
    ids, pair_ids = list(single["input_ids"]), list(pair["input_ids"])
    start = _find(ids, list(inner))
    prefix, suffix = ids[:start], ids[start + len(inner) :]
    between = pair_ids[len(prefix) + len(inner) : len(pair_ids) - len(suffix) - len(inner)]
    pad = tokenizer.pad_token_id
    if pad is None:  # models that generate text have none; any token will do, because padding is masked
        pad = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0
    types = pair.get("token_type_ids", [0])
    return SpecialTokens(
        prefix=tuple(prefix),
        separator=tuple(between),
        suffix=tuple(suffix),
        pad=int(pad),
        token_types=1 + max(types) if max(types) and getattr(config, "type_vocab_size", 0) > 1 else 0,
    )


def max_positions(config: Any) -> int | None:
    """Return how many tokens a model reads at most; None if its positions have no limit."""
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    return positions - (config.pad_token_id or 0) - 1 if config.model_type in _OFFSET_POSITIONS else positions


def _check_length(run: RunConfig, special: SpecialTokens, positions: int | None) -> None:
    length = run.tokenizer.max_length
    if positions is not None and length > positions:
        raise ConfigError(
            f"`tokenizer.max_length` ({length}) is more than the {positions} tokens that `{run.model.pretrained}` "
            f"reads. Set at most {positions}, or `data.truncation: windows` with windows of that size."
        )
    if length <= special.added + len(special.separator) * (len(run.data.text) - 1):
        raise ConfigError(f"`tokenizer.max_length` ({length}) leaves no room beside the special tokens. Raise it.")


def _find(ids: list[int], inner: list[int]) -> int:
    for start in range(len(ids) - len(inner) + 1):
        if ids[start : start + len(inner)] == inner:
            return start
    raise ConfigError("`model.pretrained`: its tokenizer changes a text when it adds special tokens; not supported.")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

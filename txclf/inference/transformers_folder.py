"""The bundle of a fine-tuned model as a folder of Transformers: its names of weights, `config.json`, its tokenizer.

The temperature of the calibration is part of the last layer, so `pipeline("text-classification")` gives the calibrated
probabilities.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from txclf import pretrained
from txclf.config.sections import Truncation
from txclf.core.errors import BundleError
from txclf.model import mean_pooling
from txclf.model.pretrained import PretrainedClassifier

_PREFIX = "network."
_TOKENIZER_CONFIG = "tokenizer_config.json"
_OF_THE_ORIGINAL = (
    "is_local",
    "local_files_only",
    "max_length",
    "pad_to_multiple_of",
    "stride",
    "truncation_strategy",
)
"""Keys of `tokenizer_config.json` that say how the pretrained tokenizer was read, truncated and padded."""


def files(encoder: str, config: Any, max_length: int, truncation: Truncation) -> dict[str, bytes]:
    """Return the files of a Transformers folder, without weights and `tokenizer.json`.

    `encoder` is a local folder with the tokenizer of the pretrained model. Transformers truncates at one side only, so
    `head_tail` and `windows` become the start of a text there.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(encoder, local_files_only=True, trust_remote_code=False)
    tokenizer.model_max_length = max_length
    tokenizer.truncation_side = "left" if truncation.mode == "tail" else "right"
    if tokenizer.pad_token is None:  # of a decoder, whose batches Transformers could not pad
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)
    architecture: Any = AutoModelForSequenceClassification._model_mapping[type(config)]
    config.architectures = [architecture.__name__]
    found = {}
    with tempfile.TemporaryDirectory(prefix="txclf-tokenizer-") as folder:
        tokenizer.save_pretrained(folder)
        for name in sorted(os.listdir(folder)):
            if name != "tokenizer.json":
                with open(os.path.join(folder, name), "rb") as file:
                    found[name] = file.read()
    found[_TOKENIZER_CONFIG] = _changed(
        found[_TOKENIZER_CONFIG],
        removed=_OF_THE_ORIGINAL,
        split_special_tokens=True,  # a `[SEP]` in a text is five characters
    )
    content = config.to_json_string(use_diff=False).encode()
    return found | {pretrained.CONFIG: _changed(content, removed=("_name_or_path",))}


def network(content: Mapping[str, bytes]) -> PretrainedClassifier:
    """Return the network that the `config.json` of a bundle describes. Its weights are arbitrary until they are loaded.

    Raises `ConfigError` if Transformers is not installed, `BundleError` if it cannot make the network.
    """
    pretrained.require_package("this model bundle")
    from transformers import AutoConfig, __version__
    from transformers.initialization import no_init_weights

    try:
        settings = json.loads(content[pretrained.CONFIG])
        config: Any = AutoConfig.for_model(settings.pop("model_type"), **settings)
        with no_init_weights():
            return PretrainedClassifier(config)
    except Exception as error:  # Transformers raises any kind for settings that it does not know
        raise BundleError(
            f"`{pretrained.CONFIG}`: Transformers {__version__} cannot make a model of it: {error!r}. "
            "Copy the whole bundle again, or install the version of Transformers that it names."
        ) from None


def max_layers(content: Mapping[str, bytes]) -> int:
    """Return the largest number of layers that the `config.json` of a bundle names; 0 if it is no JSON."""

    def largest(value: Any, key: str = "") -> int:
        if isinstance(value, dict):
            return max((largest(inner, name) for name, inner in value.items()), default=0)
        return int(value) if isinstance(value, int | float) and "layer" in key and math.isfinite(value) else 0

    try:
        return largest(json.loads(content[pretrained.CONFIG]))
    except (KeyError, ValueError, RecursionError):
        return 0  # `network` reports it


def _changed(content: bytes, *, removed: Sequence[str], **added: Any) -> bytes:
    """Return a JSON object without some keys, and with others."""
    kept = {key: value for key, value in json.loads(content).items() if key not in removed}
    return (json.dumps(kept | added, indent=2, ensure_ascii=False) + "\n").encode()


def exported(weights: Mapping[str, Tensor], content: Mapping[str, bytes], temperature: float) -> dict[str, Tensor]:
    """Return the weights of a `PretrainedClassifier` by the names of Transformers.

    The weights of the last layer are divided by `temperature`, which divides the logits.
    """
    model = network(content)
    plain = {name.removeprefix(_PREFIX): weight for name, weight in weights.items()}
    if mean_pooling.is_used(model.network.config):
        plain = mean_pooling.exported(plain, model.network, model.last_layer)
    return _scaled(plain, model.last_layer, 1 / temperature)


def imported(weights: Mapping[str, Tensor], model: PretrainedClassifier, temperature: float) -> dict[str, Tensor]:
    """Return the weights of `exported` by the names of a `PretrainedClassifier`, without the temperature."""
    scaled = _scaled(weights, model.last_layer, temperature)
    if mean_pooling.is_used(model.network.config):
        scaled = mean_pooling.imported(scaled, model.network, model.last_layer)
    return {_PREFIX + name: weight for name, weight in scaled.items()}


def _scaled(weights: Mapping[str, Tensor], layer: str, factor: float) -> dict[str, Tensor]:
    """Return weights, with those of one layer multiplied by a factor."""
    return {
        name: (weight * factor if name.rpartition(".")[0] == layer else weight).contiguous()
        for name, weight in weights.items()
    }

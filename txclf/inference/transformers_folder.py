"""The bundle of a fine-tuned model as a folder of Transformers: its names of weights, `config.json`, its tokenizer.

The temperature of the calibration is part of the last layer, so `pipeline("text-classification")` gives the calibrated
probabilities.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from txclf import pretrained
from txclf.model.pretrained import PretrainedClassifier

_PREFIX = "network."


def files(encoder: str, config: Any, max_length: int) -> dict[str, bytes]:
    """Return the files of a Transformers folder, without weights and `tokenizer.json`.

    `encoder` is a local folder with the tokenizer of the pretrained model.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(encoder, local_files_only=True, trust_remote_code=False)
    tokenizer.model_max_length = max_length
    architecture: Any = AutoModelForSequenceClassification._model_mapping[type(config)]
    config.architectures = [architecture.__name__]
    found = {}
    with tempfile.TemporaryDirectory(prefix="txclf-tokenizer-") as folder:
        tokenizer.save_pretrained(folder)
        for name in sorted(os.listdir(folder)):
            if name != "tokenizer.json":
                with open(os.path.join(folder, name), "rb") as file:
                    found[name] = file.read()
    return found | {pretrained.CONFIG: config.to_json_string(use_diff=False).encode()}


def network(content: Mapping[str, bytes]) -> PretrainedClassifier:
    """Return the network that the `config.json` of a bundle describes, with random weights.

    Raises `ConfigError` if Transformers is not installed.
    """
    pretrained.require_package()
    from transformers import AutoConfig

    settings = json.loads(content[pretrained.CONFIG])
    config: Any = AutoConfig.for_model(settings.pop("model_type"), **settings)
    return PretrainedClassifier(config)


def exported(weights: Mapping[str, Tensor], content: Mapping[str, bytes], temperature: float) -> dict[str, Tensor]:
    """Return the weights of a `PretrainedClassifier` by the names of Transformers.

    The weights of the last layer are divided by `temperature`, which divides the logits.
    """
    last = network(content).last_layer
    result = {}
    for name, weight in weights.items():
        plain = name.removeprefix(_PREFIX)
        is_last = plain.rpartition(".")[0] == last
        result[plain] = (weight / temperature if is_last else weight).contiguous()
    return result


def imported(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights by the names of a `PretrainedClassifier`."""
    return {_PREFIX + name: weight for name, weight in weights.items()}

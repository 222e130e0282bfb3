"""Mean pooling for pretrained networks whose head reads the first token, in a form that Transformers has too.

Sentence encoders were trained with the mean of their token vectors (arXiv:1908.10084), but the classifiers of BERT and
RoBERTa read the vector of the first token, through a dense layer and tanh. The mean is one more layer of the same kind:
its attention weights are all equal, so each position gets the mean, and its other products are zero or the identity.
The dense layer becomes a small multiple of the identity, where tanh is linear. Here the mean is computed directly.
Only a saved bundle has the weights of the layer, so Transformers computes the same.

Shapes: B sequences, T tokens, D size of a vector, C classes.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from txclf import pretrained
from txclf.core import storage
from txclf.core.errors import StorageError

KEY = "txclf_pooling"
"""Key in a configuration of Transformers. "mean" says that the last layer averages."""
ARCHITECTURES = ("bert", "roberta", "xlm-roberta", "camembert")
"""Types of models that have such layers and heads."""
SCALE = 64.0
"""Weight of the mean next to the residual, the vector of the first token, and what tanh is made linear by."""


class MeanLayer(nn.Module):
    """Layer that gives one position, the normalized mean (B, 1, D) of the vectors (B, T, D) of the tokens."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, hidden_BTD: Tensor, mask_B1TT: Tensor | None = None, *arguments: Any, **options: Any) -> Tensor:
        if mask_B1TT is None:
            mean_BD = hidden_BTD.mean(dim=1)
        else:
            inside_BT1 = mask_B1TT[:, 0, 0, :, None].to(hidden_BTD.dtype)
            mean_BD = (hidden_BTD * inside_BT1).sum(dim=1) / inside_BT1.sum(dim=1)
        size = mean_BD.shape[1:]
        of_attention_BD = F.layer_norm(SCALE * mean_BD + hidden_BTD[:, 0], size, eps=self.epsilon)
        return F.layer_norm(of_attention_BD, size, eps=self.epsilon)[:, None]


class ScaledLinear(nn.Linear):
    """Linear layer (…, D) to (…, C) of inputs that were divided by `SCALE`."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(SCALE * input)


def wanted(folder: str, config: Any, pooling: str | None) -> bool:
    """Return True if the network of a folder pools by the mean, as the run file says; if that is None, as the folder.

    Raises `ValueError` if the run file asks for a pooling that the network cannot have.
    """
    is_able = config.model_type in ARCHITECTURES
    if is_used(config):  # a bundle of txclf
        if pooling == "cls" or not is_able:
            raise ValueError(f"`{folder}` was fine-tuned with the mean of its tokens. Choose another model, or `mean`")
        return True
    if pooling == "mean" and not is_able:
        raise ValueError(f"a model of the type `{config.model_type}` pools its own way. Remove the key")
    return is_able and (pooling == "mean" or (pooling is None and _is_trained_with_mean(folder)))


def _is_trained_with_mean(folder: str) -> bool:
    """Return True if the folder is a model of sentence-transformers that pools by the mean alone."""
    path = os.path.join(folder, pretrained.POOLING)
    if not os.path.exists(path):
        return False
    try:
        content = storage.read_json(path)
    except StorageError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(
            f"`{pretrained.POOLING}` of the model is damaged. Copy the folder again, or set `cls` or `mean`"
        )
    modes = {key for key, value in content.items() if key.startswith("pooling_mode_") and value is True}
    return content.get("pooling_mode") == "mean" or modes == {"pooling_mode_mean_tokens"}


def require_constant(folder: str, network: Any) -> None:
    """Raise `ValueError` if a folder of `exported` weights was trained further, so that its last layer differs."""
    if storage.read_json(os.path.join(folder, pretrained.CONFIG)).get(KEY) != "mean":
        return
    dense = f"{_dense(network)}.weight"
    expected = _constants(network) | {dense: torch.eye(network.config.hidden_size) / SCALE}
    stored = dict[str, Tensor]()
    for file in sorted(name for name in os.listdir(folder) if name.endswith(".safetensors")):
        with safe_open(os.path.join(folder, file), "pt") as content:
            stored |= {name: content.get_tensor(name) for name in expected.keys() & set(content.keys())}
    if stored.keys() != expected.keys() or any(not torch.equal(stored[name], expected[name]) for name in expected):
        raise ValueError(
            f"the last layer of `{folder}` no longer averages, because it was trained further elsewhere. Remove "
            f"`{KEY}` from its `{pretrained.CONFIG}`"
        )


def is_used(config: Any) -> bool:
    """Return True if the last layer of a configuration averages."""
    return getattr(config, KEY, None) == "mean"


def use(config: Any) -> None:
    """Add the layer to a configuration, unless it has it."""
    if not is_used(config):
        setattr(config, KEY, "mean")
        config.num_hidden_layers += 1


def without(config: Any) -> Any:
    """Return a copy of a configuration, for a network without the layer."""
    config = copy.deepcopy(config)
    if is_used(config):
        config.num_hidden_layers -= 1
    return config


def attach(network: Any, last_layer: str) -> None:
    """Add the layer to a network of `without`, and make its head linear in the mean. `last_layer` gives the logits."""
    last = network.get_submodule(last_layer)
    network.base_model.encoder.layer.append(MeanLayer(network.config.layer_norm_eps))
    network.config.num_hidden_layers += 1
    dense = network.get_submodule(_dense(network))
    with torch.no_grad():
        dense.weight.copy_(torch.eye(len(dense.weight), device=dense.weight.device) / SCALE)
        dense.bias.zero_()
    dense.requires_grad_(False)
    scaled = ScaledLinear(last.in_features, last.out_features, device=last.weight.device)
    scaled.load_state_dict(last.state_dict(), assign=True)
    network.set_submodule(last_layer, scaled)


def detached(network: Any) -> Any:
    """Remove the layer from a network, and return its encoder, which gives the vectors (B, T, D) of the tokens."""
    del network.base_model.encoder.layer[-1]
    network.config.num_hidden_layers -= 1
    return network.base_model


def plain(config: Any) -> Any:
    """Return a copy of a configuration, for the weights of the encoder alone."""
    config = without(config)
    delattr(config, KEY)
    return config


def _dense(network: Any) -> str:
    """Return the name of the layer between the encoder and the last layer."""
    return f"{network.base_model_prefix}.pooler.dense" if network.base_model.pooler is not None else "classifier.dense"


def layer_prefix(network: Any) -> str:
    """Return what the names of the weights of the layer start with, where they are saved."""
    return f"{network.base_model_prefix}.encoder.layer.{network.config.num_hidden_layers - 1}."


def exported(weights: Mapping[str, Tensor], network: Any, last_layer: str) -> dict[str, Tensor]:
    """Return weights by which Transformers computes the same."""
    changed = {**weights, **_constants(network)}
    changed[f"{last_layer}.weight"] = SCALE * weights[f"{last_layer}.weight"]
    return changed


def _constants(network: Any) -> dict[str, Tensor]:
    """Return the weights of the layer."""
    prefix, found = layer_prefix(network), dict[str, Tensor]()
    for name, weight in network.base_model.encoder.layer[0].state_dict().items():
        new = torch.zeros(weight.shape)
        if name == "attention.self.value.weight":
            new.fill_diagonal_(1.0)
        elif name == "attention.output.dense.weight":
            new.fill_diagonal_(SCALE)
        elif name.endswith("LayerNorm.weight"):
            new.fill_(1.0)
        found[prefix + name] = new
    return found


def imported(weights: Mapping[str, Tensor], network: Any, last_layer: str) -> dict[str, Tensor]:
    """Return the weights that `exported` was given."""
    prefix = layer_prefix(network)
    changed = {name: weight for name, weight in weights.items() if not name.startswith(prefix)}
    changed[f"{last_layer}.weight"] = weights[f"{last_layer}.weight"] / SCALE
    return changed

"""A network and a linear model on n-grams that answer together.

Their calibrated log-probabilities are averaged with one weight, the weight of the linear model (a logarithmic opinion
pool; Hinton, 1999), which is chosen on validation rows. For several labels per text it is their logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from txclf.ngrams.features import Analyzer
from txclf.ngrams.linear import Floats, NgramModel, Weighting

_TYPES = {name: np.dtype(kind) for name, kind in [("keys", "i8"), ("scale", "f4"), ("weights", "f2"), ("bias", "f4")]}
"""Tensors of the file and their types."""

Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class NgramShare(BaseModel):
    """Share of an n-gram model in the answers of a bundle; part of `model.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    analyzer: Analyzer
    weighting: Weighting
    weight: Annotated[float, Field(ge=0.0, le=1.0)]
    """Weight of the linear model; that of the network is 1 - `weight`."""
    temperature: Positive
    """Divisor of the logits of the linear model."""
    network_temperature: Positive
    """Divisor of the logits of the network."""
    train_rows: int
    """Training rows of the linear model: the first ones of the run's."""
    network_loss: float
    """Loss of the calibrated network on the validation rows."""
    ngram_loss: float
    """Loss of the calibrated linear model on the same rows."""
    loss: float
    """Loss of both together on the same rows."""


@dataclass(frozen=True)
class Blend:
    """Linear model that answers together with a network."""

    share: NgramShare
    model: NgramModel
    is_multilabel: bool

    def scores(self, texts: Sequence[str]) -> Floats:
        """Return the calibrated log-probabilities or logits (rows, labels) of the linear model."""
        return calibrated(self.model.logits(texts), self.share.temperature, self.is_multilabel)

    def blended(self, logits: Floats, scores: Floats) -> Floats:
        """Return the logits (rows, labels) of both, from those of the network and the `scores` of the texts."""
        network = calibrated(logits, self.share.network_temperature, self.is_multilabel)
        return pooled(network, scores, self.share.weight)

    def content(self) -> bytes:
        """Return the weights in the safetensors format."""
        model = self.model
        return save_safetensors(
            {
                "keys": model.keys.view(np.int64),
                "scale": model.scale,
                "weights": model.weights.astype(np.float16),
                "bias": model.bias,
            }
        )


def loaded(share: NgramShare, content: bytes, num_labels: int, is_multilabel: bool) -> Blend:
    """Return the blend of a bundle. Raises `ValueError` if the weights are damaged or do not fit the labels."""
    try:
        tensors: Mapping[str, npt.NDArray[np.generic]] = load_safetensors(content)
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    if {name: tensor.dtype for name, tensor in tensors.items()} != _TYPES:
        raise ValueError("the n-gram weights have other names or types")
    keys = tensors["keys"].view(np.uint64)
    shapes = [(keys.size,), (keys.size,), (keys.size, num_labels), (num_labels,)]
    if [tensors[name].shape for name in _TYPES] != shapes:
        raise ValueError(f"the n-gram weights do not fit {keys.size:,} n-grams and {num_labels:,} labels")
    if not (keys[1:] > keys[:-1]).all():
        raise ValueError("the keys of the n-grams are not ascending")
    scale, weights, bias = (tensors[name].astype(np.float32) for name in ("scale", "weights", "bias"))
    if not all(np.isfinite(values).all() for values in (scale, weights, bias)):
        raise ValueError("the n-gram weights are not finite")
    model = NgramModel(share.analyzer, share.weighting, keys, scale, weights, bias, share.temperature)
    return Blend(share, model, is_multilabel)


def calibrated(logits: Floats, temperature: float, is_multilabel: bool) -> Floats:
    """Return log-probabilities (rows, labels), or for several labels per text scaled logits."""
    scaled = logits / np.float32(temperature)
    if is_multilabel or not len(scaled):
        return scaled
    scaled = scaled - scaled.max(axis=1, keepdims=True)
    result: Floats = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    return result


def pooled(network: Floats, linear: Floats, weight: float) -> Floats:
    """Return the weighted mean of the calibrated scores (rows, labels) of both."""
    return np.float32(1.0 - weight) * network + np.float32(weight) * linear

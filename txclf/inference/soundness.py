"""Checks that a bundle can answer: shapes before the network is built, finite weights, one trial prediction.

A file that fits its checksum may still hold weights that are not numbers, or settings that imply a network of any size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from txclf.core.errors import BundleError, DataError
from txclf.core.text import shown

MAX_BUFFER_ELEMENTS = 2**28
"""Numbers that a network may compute when it is built, such as positions."""
MAX_WEIGHT = 1e30
"""Largest weight. Products of larger ones overflow, though perhaps not those of the trial."""
TRIAL_TEXT = "A trial: 123 words, élan, 例え ☃ \U0001f600."
EXTREME_TOKENS = 8
"""Tokens with the largest embeddings, which the trial reads too."""
_FIX = "Copy the whole folder again, or train the model again."

Floats = npt.NDArray[np.float32]
Network = TypeVar("Network", bound=nn.Module)


def outlined(make: Callable[[], Network], layers: int, weights: Mapping[str, Tensor]) -> Network:
    """Return a network without memory for its weights, for `require_shapes`.

    Raises `ValueError` if `weights` are too few for so many layers, because each layer takes time to construct.
    """
    if layers > len(weights):
        raise ValueError(f"{layers:,} layers, but {len(weights):,} tensors")
    with torch.device("meta"):
        return make()


def require_shapes(outline: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raise `ValueError` if weights do not have the names and shapes of a network."""
    expected = {name: list(tensor.shape) for name, tensor in outline.state_dict().items()}
    for name in sorted(expected.keys() | weights.keys()):
        if name not in expected or name not in weights:
            raise ValueError(f"`{shown(name)}` is {'missing' if name in expected else 'not part of the network'}")
        if list(weights[name].shape) != expected[name]:
            raise ValueError(f"`{name}` has the shape {list(weights[name].shape)}, not {expected[name]}")
        if not weights[name].is_floating_point():
            raise ValueError(f"`{name}` holds {weights[name].dtype}, not floating-point numbers")
    # Tables of positions are not stored; their size follows from settings alone.
    stored = sum(weight.numel() for weight in weights.values())
    if sum(buffer.numel() for buffer in outline.buffers()) > MAX_BUFFER_ELEMENTS + stored:
        raise ValueError("its tables of positions are too large")


def require_finite(network: nn.Module, folder: str) -> None:
    """Raise `BundleError` if a weight is NaN, infinite or beyond `MAX_WEIGHT`."""
    for name, tensor in network.state_dict().items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        largest = float(torch.linalg.vector_norm(tensor, ord=float("inf")))  # NaN if one of them is
        if not largest <= MAX_WEIGHT:
            problem = f"of up to {largest:.0e}" if math.isfinite(largest) else "that are not finite"
            raise BundleError(f"`{folder}`: the weights are damaged: `{name}` has values {problem}. {_FIX}")


def require_answer(answer: Callable[[], Floats], folder: str) -> None:
    """Raise `BundleError` if a trial prediction fails or gives numbers that are not finite."""
    try:
        is_finite = np.isfinite(answer()).all()
    except BundleError:
        raise
    except DataError as error:
        raise BundleError(f"`{folder}`: the model cannot answer a trial text: {error}") from None
    except Exception as error:  # torch and Transformers raise any kind for a network that does not fit its inputs
        reason = shown(f"{type(error).__name__}: {error}", 300)
        raise BundleError(f"`{folder}`: the model cannot answer a trial text: {reason}. {_FIX}") from None
    if not is_finite:
        raise not_finite(folder)


def not_finite(folder: str) -> BundleError:
    """Return the error for a model whose answers are not finite."""
    return BundleError(f"`{folder}`: the model gives numbers that are not finite. {_FIX}")


@torch.inference_mode()
def extreme_tokens(embedding: Tensor, max_length: int) -> list[int]:
    """Return the tokens with the largest embeddings (V, D), from which the largest numbers follow."""
    sizes_V: Tensor = torch.linalg.vector_norm(embedding, ord=float("inf"), dim=1)
    _, tokens = sizes_V.topk(min(EXTREME_TOKENS, max_length, len(sizes_V)))
    return [int(token) for token in tokens]

"""The model bundle: all that prediction needs, loaded without Ray, Lightning or pickle.

model.safetensors    weights
tokenizer.json       of the `tokenizers` library
card.md              what the model is, for people
model.json           format, settings, labels, metrics; written last

from txclf import Classifier
Classifier.load("runs/agnews/model")(["some text"])
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import nn

from txclf._version import __version__
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.core.errors import BundleError, StorageError
from txclf.data.tokenizer import parse_tokenizer, vocab_size
from txclf.inference import model_card
from txclf.inference.metadata import FORMAT, BundleMetadata, Calibration, summary, upgrade

WEIGHTS, TOKENIZER, TARGET_TOKENIZER, CARD, DESCRIPTION = (
    "model.safetensors",
    "tokenizer.json",
    "target_tokenizer.json",
    "card.md",
    "model.json",
)

Floats = npt.NDArray[np.float32]
Network = TypeVar("Network", bound=nn.Module)


def save(
    folder: str,
    run: RunConfig,
    weights: Mapping[str, torch.Tensor],
    labels: Sequence[str],
    tokenizers: Sequence[str],
    metrics: Mapping[str, float],
    rows: Mapping[str, int],
    calibration: Calibration | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> None:
    """Writes a bundle; `model.json`, written last, makes it whole. A second tokenizer is that of the targets."""
    parts = {WEIGHTS: save_safetensors({name: weight.contiguous() for name, weight in weights.items()})}
    parts |= {name: text.encode() for name, text in zip((TOKENIZER, TARGET_TOKENIZER), tokenizers, strict=False)}
    description = metadata_from_config(run, labels, tokenizers).model_copy(
        update={
            "metrics": dict(metrics),
            "rows": dict(rows),
            "sha256": {name: _sha256(part) for name, part in parts.items()},
            "calibration": calibration,
            "thresholds": None if thresholds is None else dict(thresholds),
            "num_segments": num_segments(weights),
        }
    )
    for name, part in parts.items():
        storage.write_bytes(storage.join(folder, name), part)
    model_card.write(storage.join(folder, CARD), run.task, summary(run.name, description))
    storage.write_json(storage.join(folder, DESCRIPTION), description.model_dump())


def metadata_from_config(run: RunConfig, labels: Sequence[str], tokenizers: Sequence[str]) -> BundleMetadata:
    """What follows from the run alone."""
    return BundleMetadata(
        format=FORMAT,
        version=__version__,
        task=run.task,
        labels=list(labels),
        text_columns=list(run.data.text),
        max_length=run.tokenizer.max_length,
        truncation=run.truncation,
        vocab_size=vocab_size(parse_tokenizer(tokenizers[0])),
        target_vocab_size=vocab_size(parse_tokenizer(tokenizers[-1])) if run.task == "seq2seq" else 0,
        label_delimiter=run.data.label_delimiter,
        generate=run.generate if run.task == "seq2seq" else None,
        model=run.model,
        metrics={},
        rows={},
        sha256={},
    )


def num_segments(weights: Mapping[str, torch.Tensor]) -> int:
    """Text columns that weights tell apart."""
    return len(weights.get("segments.weight", ()))


def read(folder: str, *tasks: str) -> tuple[BundleMetadata, dict[str, bytes]]:
    """A bundle's description and its files' content. Raises `BundleError` when it is damaged or of another task."""
    description = read_metadata(folder)
    if description.task not in tasks:
        raise BundleError(f"`{folder}`: a model of `task: {description.task}`, not {' or '.join(tasks)}")
    content = {}
    for name in (WEIGHTS, TOKENIZER, TARGET_TOKENIZER):
        if name == TARGET_TOKENIZER and name not in description.sha256:
            continue
        path = storage.join(folder, name)
        if not storage.exists(path):
            raise BundleError(f"`{path}`: missing, the bundle is damaged: copy the whole folder again")
        content[name] = storage.read_bytes(path)
        if _sha256(content[name]) != description.sha256.get(name):
            raise BundleError(f"`{path}`: its content changed since it was saved: copy the whole folder again")
    return description, content


def build(make: Callable[[], Network], content: Mapping[str, bytes], folder: str) -> Network:
    """A model with the weights of a bundle. Raises `BundleError` when they do not fit."""
    try:
        model = make()
        model.load_state_dict(load_safetensors(content[WEIGHTS]))
        return model
    except (SafetensorError, RuntimeError) as error:
        raise BundleError(f"`{folder}`: the weights do not fit `{DESCRIPTION}`: {error}") from None


def read_metadata(folder: str) -> BundleMetadata:
    path = storage.join(folder, DESCRIPTION)
    if not storage.exists(path):
        hint = storage.join(folder, "model")
        more = f": did you mean `{hint}`?" if storage.exists(storage.join(hint, DESCRIPTION)) else ""
        raise BundleError(f"`{folder}`: not a model bundle, it has no {DESCRIPTION}{more}")
    try:
        content: Any = storage.read_json(path)
    except StorageError as error:
        raise BundleError(f"{error}: copy the whole folder again") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found not in (1, FORMAT):
        raise BundleError(f"`{path}`: format {found!r}, this txclf ({__version__}) reads format {FORMAT}")
    try:
        return BundleMetadata.model_validate(upgrade(content))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"`{path}`: damaged at `{place}`: {first['msg']}") from None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

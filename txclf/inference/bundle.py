"""The model bundle: everything that prediction needs, loaded without Ray, Lightning or pickle.

model.safetensors    weights
ngrams.safetensors   weights of the linear model on n-grams, if it has a share
tokenizer.json       tokenizer in the format of the `tokenizers` library
README.md            model card
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
from tokenizers import Tokenizer as FastTokenizer
from torch import nn

from txclf._version import __version__
from txclf.config.run_config import RunConfig
from txclf.config.sections import SpecialTokens
from txclf.core import storage
from txclf.core.errors import BundleError, DataError, StorageError
from txclf.core.text import shown
from txclf.data.tokenizer import parse_tokenizer, text_tokens, vocab_size
from txclf.inference import model_card, soundness, transformers_folder
from txclf.inference.metadata import FORMAT, BundleMetadata, Calibration, Conformal, hub_metadata, summary, upgrade
from txclf.model.pretrained import PretrainedClassifier
from txclf.ngrams import blend as ngram_blend
from txclf.ngrams.blend import Blend

WEIGHTS, NGRAMS, TOKENIZER, TARGET_TOKENIZER, CARD, METADATA = (
    "model.safetensors",
    "ngrams.safetensors",
    "tokenizer.json",
    "target_tokenizer.json",
    "README.md",
    "model.json",
)

Floats = npt.NDArray[np.float32]
Network = TypeVar("Network", bound=nn.Module)


def save(
    folder: str,
    run: RunConfig,
    weights: Mapping[str, torch.Tensor],
    *,
    labels: Sequence[str],
    tokenizers: Sequence[str],
    metrics: Mapping[str, float],
    rows: Mapping[str, int],
    calibration: Calibration | None = None,
    thresholds: Mapping[str, float] | None = None,
    conformal: Conformal | None = None,
    special: SpecialTokens | None = None,
    transformers_files: Mapping[str, bytes] | None = None,
    blend: Blend | None = None,
) -> None:
    """Write a bundle; `model.json` is written last and marks it as complete.

    `tokenizers` holds the tokenizer of the texts and, if the targets have their own, that of the targets. `metrics` are
    those of the validation split, `rows` counts the rows of each split. `special` and `transformers_files` are those of
    a pretrained model. `blend` is the linear model that answers together with the network.
    """
    files = dict(transformers_files or {})
    if transformers_files is not None:
        temperature = calibration.temperature if calibration else 1.0
        temperature = blend.share.network_temperature if blend else temperature
        weights = transformers_folder.exported(weights, transformers_files, temperature)
    marked = {"format": "pt"} if transformers_files is not None else None  # Transformers wants to know
    files[WEIGHTS] = save_safetensors({name: weight.contiguous() for name, weight in weights.items()}, marked)
    files |= {name: text.encode() for name, text in zip((TOKENIZER, TARGET_TOKENIZER), tokenizers, strict=False)}
    if blend:
        files[NGRAMS] = blend.content()
    metadata = metadata_from_config(run, labels, tokenizers).model_copy(
        update={
            "ngrams": blend.share if blend else None,
            "metrics": dict(metrics),
            "rows": dict(rows),
            "sha256": {name: _sha256(content) for name, content in files.items()},
            "calibration": calibration,
            "thresholds": None if thresholds is None else dict(thresholds),
            "conformal": conformal,
            "num_segments": num_segments(weights),
            "special_tokens": special,
            "folded_temperature": transformers_files is not None and (calibration is not None or blend is not None),
        }
    )
    for name, content in files.items():
        storage.write_bytes(storage.join(folder, name), content)
    model_card.write(storage.join(folder, CARD), hub_metadata(run.name, metadata), summary(run.name, metadata))
    storage.write_json(storage.join(folder, METADATA), metadata.model_dump())


def metadata_from_config(run: RunConfig, labels: Sequence[str], tokenizers: Sequence[str]) -> BundleMetadata:
    """Return the metadata that follow from the run and its tokenizers, without metrics, rows and checksums."""
    is_seq2seq = run.task_spec.is_seq2seq
    return BundleMetadata(
        format=FORMAT,
        version=__version__,
        task=run.task,
        labels=list(labels),
        text_columns=list(run.data.text),
        max_length=run.tokenizer.max_length,
        truncation=run.truncation,
        vocab_size=vocab_size(parse_tokenizer(tokenizers[0])),
        target_vocab_size=vocab_size(parse_tokenizer(tokenizers[-1])) if is_seq2seq else 0,
        label_delimiter=run.data.label_delimiter,
        generate=run.generate if is_seq2seq else None,
        model=run.model,
        metrics={},
        rows={},
        sha256={},
    )


def num_segments(weights: Mapping[str, torch.Tensor]) -> int:
    """Return the number of text columns that the weights distinguish; 0 without segment embeddings."""
    return len(weights.get("segments.weight", ()))


def read(folder: str, *, seq2seq: bool | None = None) -> tuple[BundleMetadata, dict[str, bytes]]:
    """Return the metadata of a bundle and the content of its files.

    `seq2seq` is True or False to require a sequence-to-sequence model or a classifier, None to accept both.

    Raises `BundleError` if the folder is not a bundle, is damaged, or holds a model of the wrong kind.
    """
    metadata = read_metadata(folder)
    if seq2seq is not None and metadata.task_spec.is_seq2seq != seq2seq:
        loader = "Classifier" if seq2seq else "Seq2Seq"
        raise BundleError(f"`{folder}`: a model of `task: {metadata.task}`. Load it with `{loader}.load`.")
    names = (WEIGHTS, TOKENIZER, *metadata.sha256.keys() - {WEIGHTS, TOKENIZER})
    return metadata, {name: _read_file(metadata, folder, name) for name in names}


def _read_file(metadata: BundleMetadata, folder: str, name: str) -> bytes:
    """Return the content of a file of a bundle, compared with its checksum."""
    path = storage.join(folder, name)
    if not storage.exists(path):
        raise BundleError(f"`{path}`: missing, so the bundle is damaged. Copy the whole folder again.")
    content = storage.read_bytes(path)
    if _sha256(content) != metadata.sha256.get(name):
        raise BundleError(f"`{path}`: the content changed after it was saved. Copy the whole folder again.")
    return content


def build(
    make: Callable[[], Network],
    content: Mapping[str, bytes],
    folder: str,
    *,
    layers: int,
    folded_temperature: float = 1.0,
) -> Network:
    """Return the network that `make` constructs, with the weights of a bundle and logits before calibration.

    `layers` bounds its number of layers. `folded_temperature` is the temperature that the weights of a pretrained model
    contain. Raises `BundleError` if the weights are not those of the network or not finite.
    """
    try:
        weights = load_safetensors(content[WEIGHTS])
        outline = soundness.outlined(make, layers, weights)
        if isinstance(outline, PretrainedClassifier):
            weights = transformers_folder.imported(weights, outline, folded_temperature)
        soundness.require_shapes(outline, weights)
        model = make()
        model.load_state_dict(weights)
    except (SafetensorError, ValueError, TypeError, OverflowError, RuntimeError) as error:  # of sizes beyond 64 bits
        raise BundleError(
            f"`{folder}`: the weights do not match `{METADATA}`: {error}. Copy the whole folder again."
        ) from None
    soundness.require_finite(model, folder)
    return model


def read_blend(metadata: BundleMetadata, content: Mapping[str, bytes], folder: str) -> Blend | None:
    """Return the linear model of a bundle, or None. Raises `BundleError` if it is damaged or does not fit."""
    if metadata.ngrams is None:
        return None
    spec = metadata.task_spec
    try:
        return ngram_blend.loaded(metadata.ngrams, content[NGRAMS], len(metadata.labels), spec.is_multilabel)
    except (ValueError, KeyError) as error:
        raise BundleError(f"`{storage.join(folder, NGRAMS)}`: damaged: {error}. Copy the whole folder again.") from None


def load_blend(folder: str) -> Blend | None:
    """Return the linear model of the bundle in a folder, without its network. Raises `BundleError` as `read` does."""
    metadata = read_metadata(folder)
    content = {NGRAMS: _read_file(metadata, folder, NGRAMS)} if metadata.ngrams else {}
    return read_blend(metadata, content, folder)


def tokenizer(content: Mapping[str, bytes], name: str, folder: str, size: int) -> FastTokenizer:
    """Return a tokenizer of a bundle. Raises `BundleError` if it is damaged or a text can have tokens beyond `size`."""
    try:
        found = parse_tokenizer(content[name])
    except DataError as error:
        raise BundleError(f"`{folder}`: {error}. Copy the whole folder again.") from None
    if (highest := max(text_tokens(found), default=0)) >= size:
        raise BundleError(
            f"`{storage.join(folder, name)}`: a token has the id {highest:,}, but the model has {size:,} "
            "tokens. Copy the whole folder again."
        )
    return found


def read_metadata(folder: str) -> BundleMetadata:
    """Return the content of `model.json`, upgraded to the current format.

    Raises `BundleError` if the folder is not a bundle, or if the file is damaged or of an unknown format.
    """
    path = storage.join(folder, METADATA)
    if not storage.exists(path):
        nested = storage.join(folder, "model")
        is_run = storage.exists(storage.join(nested, METADATA))
        fix = f"Pass `{nested}`." if is_run else "Pass the folder `model` of a finished run."
        raise BundleError(f"`{folder}`: not a model bundle, it has no {METADATA}. {fix}")
    try:
        content: Any = storage.read_json(path)
    except StorageError as error:
        raise BundleError(f"{error}. Copy the whole folder again.") from None
    bundle_format = content.get("format") if isinstance(content, dict) else None
    if bundle_format not in (1, FORMAT):
        raise BundleError(
            f"`{path}`: format {bundle_format!r}, but txclf {__version__} reads formats 1 to {FORMAT}. "
            "Install the version that wrote the bundle."
        )
    try:
        return BundleMetadata.model_validate(upgrade(content))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(shown(part) for part in problem["loc"])
        place = f" at `{key}`" if key else ""
        raise BundleError(f"`{path}`: damaged{place}: {problem['msg']}. Copy the whole folder again.") from None
    except (AttributeError, TypeError, ValueError):  # a section of format 1 that is none
        raise BundleError(f"`{path}`: damaged. Copy the whole folder again.") from None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

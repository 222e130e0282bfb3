"""Vectors of single tokens by a pretrained encoder, from which the embeddings of a small model start.

A token's vector is the mean of what the encoder's last layer gives for its text alone. The vectors are centred and
projected to their principal components (Model2Vec, https://github.com/MinishLab/model2vec).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer as FastTokenizer

from txclf import pretrained
from txclf.core.errors import ConfigError

BATCH_TOKENS = 16_384

Floats = npt.NDArray[np.float32]


def token_texts(tokenizer: FastTokenizer, tokens: Sequence[int]) -> list[str]:
    """Return what each token stands for in a text; an inner piece of a word stands for its letters."""
    return [tokenizer.decode([token], skip_special_tokens=False).removeprefix("##").strip() for token in tokens]


def read(folder: str, texts: Sequence[str], width: int) -> Floats:
    """Return the vectors (N, `width`) of N texts by the encoder of a folder.

    Raises `ConfigError` if the folder holds no usable encoder, or one whose vectors have fewer than `width` numbers.
    """
    try:
        with pretrained.located(folder) as found:
            whole = _means(found.folder, texts)
    except ConfigError as error:
        raise ConfigError(str(error).replace("`model.pretrained`", "`model.word_vectors`")) from None
    if width > whole.shape[1]:
        raise ConfigError(
            f"`model.word_vectors`: the vectors of `{folder}` have {whole.shape[1]} numbers, `model.hidden_size` is "
            f"{width}. Set `model.hidden_size` to {whole.shape[1]} or less."
        )
    return _projected(whole, width)


def _means(folder: str, texts: Sequence[str]) -> Floats:
    """Return the mean of the last layer for each text (N, D)."""
    from transformers import AutoModel, AutoTokenizer

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with pretrained.quiet():
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, **options)
            model: Any = AutoModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32, **options)
    except Exception as error:  # Transformers, tokenizers and safetensors raise several kinds for damaged files
        raise ConfigError(
            f"`model.pretrained`: the encoder cannot be loaded: {error}. Copy the folder again."
        ) from None
    try:
        return _run(model.to(device).eval(), tokenizer, texts, device)
    except Exception as error:  # architectures raise any kind, and not all have a last layer of token vectors
        raise ConfigError(
            f"`model.pretrained`: the encoder does not run on single tokens: {error}. Choose another encoder."
        ) from None


def _run(model: Any, tokenizer: Any, texts: Sequence[str], device: torch.device) -> Floats:
    """Return the means (N, D) of a loaded encoder."""
    ids = tokenizer([text or " " for text in texts], truncation=True, max_length=16)["input_ids"]
    lengths = np.array([len(row) for row in ids])
    means = np.zeros((len(texts), model.config.hidden_size), np.float32)
    with torch.inference_mode():
        for length in sorted({*lengths.tolist()} - {0}):  # without padding, for which decoders may have no token
            rows = np.flatnonzero(lengths == length)
            for part in np.array_split(rows, max(1, len(rows) * length // BATCH_TOKENS)):
                batch = torch.tensor([ids[row] for row in part], device=device)
                means[part] = model(input_ids=batch).last_hidden_state.mean(dim=1).float().cpu().numpy()
    return means


def _projected(vectors: Floats, width: int) -> Floats:
    """Return the vectors projected to their first `width` principal components."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0)
    _, directions = np.linalg.eigh(centred.T @ centred)  # in the order of rising variance
    projected: Floats = (centred @ directions[:, ::-1][:, :width]).astype(np.float32)
    return projected

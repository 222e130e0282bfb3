"""Vectors of tokens by a pretrained encoder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.encoders import write_encoder
from txclf.core.errors import ConfigError
from txclf.data import encoder_vectors
from txclf.data.tokenizer import parse_tokenizer

TEXTS = ["fox", "lazy", "the quick", "", "1,234.5"]


@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert", "distilbert", "gpt2"])
def test_read_gives_projected_means_of_the_last_layer(tmp_path: Path, architecture: str) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = write_encoder(tmp_path, architecture)
    whole = encoder_vectors.read(folder, TEXTS, 32)
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        means = torch.stack(
            [model(**tokenizer(text or " ", return_tensors="pt")).last_hidden_state[0].mean(dim=0) for text in TEXTS]
        )
    # A projection keeps the distances, and its first components have the most variance.
    np.testing.assert_allclose(distances(whole), distances(means.numpy()), rtol=1e-3, atol=1e-5)
    variances = whole.var(axis=0)
    assert (variances[:-1] >= variances[1:] - 1e-6).all()
    np.testing.assert_allclose(np.abs(encoder_vectors.read(folder, TEXTS, 3)), np.abs(whole[:, :3]), atol=1e-4)


def distances(vectors: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    return found


def test_token_texts_are_words_and_pieces(tmp_path: Path) -> None:
    tokenizer = parse_tokenizer(Path(write_encoder(tmp_path, "bert"), "tokenizer.json").read_text())
    vocabulary = tokenizer.get_vocab()
    pieces = [token for token in vocabulary if token.startswith("##") and len(token) > 3][:2]
    assert pieces
    texts = encoder_vectors.token_texts(tokenizer, [vocabulary["the"], *(vocabulary[piece] for piece in pieces)])
    assert texts == ["the", *(piece[2:] for piece in pieces)]


def test_read_refuses_what_is_no_encoder_or_too_narrow(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "encoder", "bert")
    with pytest.raises(ConfigError, match=r"have 32 numbers, `model.hidden_size` is 64. Set `model.hidden_size` to 32"):
        encoder_vectors.read(folder, TEXTS, 64)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"`model.word_vectors`: `.*empty` has no `config.json`"):
        encoder_vectors.read(str(tmp_path / "empty"), TEXTS, 16)
    Path(folder, "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match=r"`model.word_vectors`: the encoder cannot be loaded"):
        encoder_vectors.read(folder, TEXTS, 16)
    Path(folder, "config.json").write_text(json.dumps({"model_type": "t5", "is_encoder_decoder": True}))
    with pytest.raises(ConfigError, match=r"`model.word_vectors`: .* does not classify texts"):
        encoder_vectors.read(folder, TEXTS, 16)

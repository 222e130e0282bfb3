"""Sentence encoders pool by the mean, and Transformers computes the same from the saved weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.helpers.encoders import as_sentence_encoder, write_encoder
from txclf.config.sections import Model, Truncation
from txclf.core.errors import ConfigError
from txclf.inference import transformers_folder
from txclf.model import mean_pooling, pooled_vectors
from txclf.model.pretrained import PretrainedClassifier, read_config, with_sizes

LABELS = ["low", "mid", "high"]
ARCHITECTURES = ("bert", "roberta", "xlm-roberta")


def load(folder: str, **settings: Any) -> tuple[PretrainedClassifier, Any]:
    """Load a folder with a seeded head, and return its configuration too."""
    model = Model(pretrained=folder, **settings)
    config = read_config(folder, model, labels=LABELS, is_multilabel=False, pad=1)
    torch.manual_seed(0)
    return PretrainedClassifier.load(folder, config, model).eval(), config


def batch(model: PretrainedClassifier) -> tuple[Tensor, Tensor]:
    """Return token ids (4, 12) and their mask; the third row has padding."""
    ids = torch.randint(10, 80, (4, 12), generator=torch.Generator().manual_seed(3))
    mask = torch.ones(4, 12, dtype=torch.bool)
    mask[2, 7:] = False
    return ids.masked_fill(~mask, model.network.config.pad_token_id), mask


def save(folder: str, target: Path, model: PretrainedClassifier, config: Any) -> str:
    """Write a network as a bundle does, with a temperature of 2."""
    from safetensors.torch import save_file

    target.mkdir()
    files = transformers_folder.files(folder, config, 16, Truncation())
    for name, content in files.items():
        (target / name).write_bytes(content)
    save_file(transformers_folder.exported(model.state_dict(), files, 2.0), target / "model.safetensors")
    return str(target)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_transformers_computes_the_same_from_the_saved_weights(tmp_path: Path, architecture: str) -> None:
    from transformers import AutoModelForSequenceClassification

    folder = as_sentence_encoder(write_encoder(tmp_path / "encoder", architecture))
    model, config = load(folder)
    ids, mask = batch(model)
    logits = model(ids, mask)
    assert logits.std() > 1e-2
    saved = save(folder, tmp_path / "saved", model, config)
    loader: Any = AutoModelForSequenceClassification
    for kind in ("eager", "sdpa"):
        other, info = loader.from_pretrained(saved, attn_implementation=kind, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        expected = 2 * other.eval()(input_ids=ids, attention_mask=mask.long()).logits
        torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-4)
    # A row does not depend on the others of its batch.
    torch.testing.assert_close(logits[2:3], model(ids[2:3, :7]), atol=5e-6, rtol=1e-5)
    # The bundle has the same network again, and so has a run that starts from it.
    content = {name: Path(saved, name).read_bytes() for name in ("config.json",)}
    weights = transformers_folder.exported(model.state_dict(), content, 2.0)
    again = transformers_folder.network(content).eval()
    again.load_state_dict(transformers_folder.imported(weights, again, 2.0))
    torch.testing.assert_close(again(ids, mask), logits)
    continued, _ = load(saved)
    torch.testing.assert_close(2 * continued(ids, mask), logits, atol=5e-6, rtol=1e-5)
    assert continued.notes == ["pretrained weights: new none; not used none"]


def test_head_reads_the_normalized_mean_of_the_tokens(tmp_path: Path) -> None:
    from transformers import AutoModel

    folder = as_sentence_encoder(write_encoder(tmp_path))
    model, _ = load(folder)
    ids, mask = batch(model)
    loader: Any = AutoModel
    states = loader.from_pretrained(folder).eval()(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    mean = (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    expected = model.network.classifier(F.layer_norm(mean, mean.shape[1:]) / mean_pooling.SCALE)
    torch.testing.assert_close(model(ids, mask), expected, atol=0.02 * float(expected.detach().std()), rtol=0)
    assert pooled_vectors.pooling_of(model, ids, mask, None) == "first"  # of the one position that the layer gives
    vectors = pooled_vectors.pooled(model, ids, mask, None, "first")
    torch.testing.assert_close(pooled_vectors.head_logits(model, vectors), model(ids, mask))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layer_is_neither_trained_nor_counted(tmp_path: Path, architecture: str) -> None:
    folder = as_sentence_encoder(write_encoder(tmp_path, architecture))
    model, config = load(folder)
    assert len(model.blocks) == 3
    settled = with_sizes(Model(pretrained=folder), config)
    assert (settled.num_layers, settled.pooling) == (3, "mean")
    assert with_sizes(settled, config) == settled
    constant = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    dense = "network.bert.pooler.dense" if architecture == "bert" else "network.classifier.dense"
    assert constant == {f"{dense}.weight", f"{dense}.bias"}
    model.train()(*batch(model)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name in constant), name


@pytest.mark.parametrize(
    ("content", "is_mean"),
    [
        ({"pooling_mode": "mean"}, True),
        ({"pooling_mode": "cls"}, False),
        ({"pooling_mode_mean_tokens": True}, True),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, False),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, False),
    ],
)
def test_pooling_is_that_of_the_folder_unless_set(tmp_path: Path, content: dict[str, Any], is_mean: bool) -> None:
    folder = as_sentence_encoder(write_encoder(tmp_path), content)
    assert mean_pooling.is_used(load(folder)[1]) == is_mean
    for pooling in ("mean", "cls"):
        model, config = load(folder, pooling=pooling)
        assert mean_pooling.is_used(config) == (pooling == "mean")
        assert with_sizes(Model(pretrained=folder), config).pooling == pooling
        assert "classifier.weight" in model.notes[0]


def test_a_bundle_keeps_its_pooling_and_its_layer(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = as_sentence_encoder(write_encoder(tmp_path / "encoder"))
    saved = save(folder, tmp_path / "saved", *load(folder))
    with pytest.raises(ConfigError, match=r"`model\.pooling`: `.*saved` was fine-tuned with the mean of its tokens"):
        load(saved, pooling="cls")
    assert load(saved, pooling="mean")[0].notes == ["pretrained weights: new none; not used none"]
    weights = load_file(f"{saved}/model.safetensors")
    for name in ("bert.encoder.layer.3.attention.self.query.weight", "bert.pooler.dense.weight"):
        changed = {**weights, name: weights[name] + 0.01}
        save_file(changed, f"{saved}/model.safetensors", {"format": "pt"})
        with pytest.raises(
            ConfigError, match=r"the last layer of `.*saved` no longer averages, because it was trained"
        ):
            load(saved)


@pytest.mark.parametrize("content", ["[]", "null", "{"])
def test_a_damaged_pooling_is_an_error(tmp_path: Path, content: str) -> None:
    folder = as_sentence_encoder(write_encoder(tmp_path))
    Path(folder, "1_Pooling/config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"`1_Pooling/config.json` of the model is damaged"):
        load(folder)
    load(folder, pooling="mean")


def test_other_architectures_pool_their_own_way(tmp_path: Path) -> None:
    folder = as_sentence_encoder(write_encoder(tmp_path, "mpnet"))
    assert not mean_pooling.is_used(load(folder)[1])
    with pytest.raises(ConfigError, match=r"`model\.pooling`: a model of the type `mpnet` pools its own way"):
        load(folder, pooling="mean")

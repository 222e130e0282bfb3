"""Pretrained networks: the same logits and gradients as Transformers, whatever the batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from tests.helpers.encoders import ALL, SIZES, write_encoder
from txclf.config.sections import Model
from txclf.core.errors import ConfigError
from txclf.model.dropout import Dropout
from txclf.model.pretrained import PretrainedClassifier, read_config, with_sizes

LABELS = ["low", "mid", "high"]


def config_of(folder: str, **settings: Any) -> tuple[Any, Model]:
    """Return the configuration of a folder and the settings of a run."""
    model = Model(pretrained=folder, **settings)
    return read_config(folder, model, labels=LABELS, is_multilabel=False, pad=1), model


def load(folder: str, **settings: Any) -> PretrainedClassifier:
    """Load a folder with a seeded head."""
    torch.manual_seed(0)
    return PretrainedClassifier.load(folder, *config_of(folder, **settings))


def reference(folder: str, model: PretrainedClassifier) -> Any:
    """Return the same network as Transformers makes it, without anything of txclf."""
    from transformers import AutoModelForSequenceClassification

    loader: Any = AutoModelForSequenceClassification
    network = loader.from_pretrained(folder, num_labels=3, attn_implementation="eager")
    network.config.pad_token_id = model.network.config.pad_token_id
    network.load_state_dict(model.network.state_dict())
    return network.eval()


def batch(model: PretrainedClassifier) -> tuple[Tensor, Tensor]:
    """Return token ids (4, 12) and their mask; the third row has padding."""
    ids = torch.randint(10, 80, (4, 12), generator=torch.Generator().manual_seed(3))
    mask = torch.ones(4, 12, dtype=torch.bool)
    mask[2, 7:] = False
    return ids.masked_fill(~mask, model.network.config.pad_token_id), mask


@pytest.mark.parametrize("architecture", ALL)
def test_logits_and_gradients_are_those_of_transformers(tmp_path: Path, architecture: str) -> None:
    folder = write_encoder(tmp_path, architecture)
    model = load(folder).eval()
    other = reference(folder, model)
    ids, mask = batch(model)
    logits, expected = model(ids, mask), other(input_ids=ids, attention_mask=mask.long()).logits
    torch.testing.assert_close(logits, expected, atol=2e-6, rtol=1e-5)
    assert logits.std() > 1e-3
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    (logits * weights).sum().backward()
    (expected * weights).sum().backward()
    gradients = {name: parameter.grad for name, parameter in other.named_parameters()}
    for name, parameter in model.network.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-3, msg=name)
    # A row does not depend on the others of its batch.
    torch.testing.assert_close(logits[2:3], model(ids[2:3, :7]), atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(logits[:1], model(ids[:1]), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("architecture", ALL)
def test_shift_is_added_to_the_token_embeddings(tmp_path: Path, architecture: str) -> None:
    model = load(write_encoder(tmp_path, architecture)).eval()
    ids, mask = batch(model)
    vector_D = torch.randn(model.embedding.embedding_dim, generator=torch.Generator().manual_seed(2))
    shifted, before = model(ids, mask, vector_D.expand(*ids.shape, -1)), model(ids, mask)
    with torch.no_grad():
        model.embedding.weight += vector_D
    torch.testing.assert_close(shifted, model(ids, mask), atol=2e-6, rtol=1e-5)
    assert (shifted - before).abs().max() > 1e-3


@pytest.mark.parametrize("architecture", ALL)
def test_depths_go_from_the_embeddings_to_the_head(tmp_path: Path, architecture: str) -> None:
    model = load(write_encoder(tmp_path, architecture), freeze="encoder")
    depths = model.layer_depths()
    assert depths.keys() == dict(model.named_parameters()).keys()
    layers = {1} if architecture == "albert" else {1, 2, 3}  # which shares one layer
    assert set(depths.values()) == {0, None} | layers
    assert all(depth == 0 for name, depth in depths.items() if "embeddings" in name or "attention_bias" in name)
    heads = ("pre_classifier", "classifier", "pooler", "score", "head")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, depth in depths.items() if depth is None}
    assert trained == {name for name in depths if name.split(".")[1] in heads or ".pooler." in name}


@pytest.mark.parametrize(
    ("freeze", "frozen"), [("none", set()), ("embeddings", {0}), (2, {0, 1, 2}), ("encoder", {0, 1, 2, 3})]
)
def test_frozen_layers_neither_train_nor_drop(tmp_path: Path, freeze: Any, frozen: set[int]) -> None:
    model = load(write_encoder(tmp_path), freeze=freeze).train()
    parameters = dict(model.named_parameters())
    assert {depth for name, depth in model.layer_depths().items() if not parameters[name].requires_grad} == frozen
    for depth, block in enumerate(model.blocks, 1):
        assert {part.training for part in block.modules()} == {depth not in frozen}
    assert model.network.training


def test_dropout_is_that_of_the_model_unless_set(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.2)
    kept, _ = config_of(folder)
    assert (kept.hidden_dropout_prob, kept.attention_probs_dropout_prob) == (0.3, 0.2)
    replaced, _ = config_of(folder, dropout=0.0, attention_dropout=0.5)
    assert (replaced.hidden_dropout_prob, replaced.attention_probs_dropout_prob) == (0.0, 0.5)


def test_sizes_are_those_of_the_model(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path)
    config, model = config_of(folder)
    settled = with_sizes(model, config)
    assert (settled.num_layers, settled.hidden_size, settled.num_heads, settled.intermediate_size) == (3, 32, 4, 48)
    assert with_sizes(settled, config) == settled
    with pytest.raises(ConfigError, match=r"`model.hidden_size` \(64\) is not that of `model.pretrained` \(32\)"):
        with_sizes(model.model_copy(update={"hidden_size": 64}), config)


def test_top_layers_start_again(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path)
    plain, renewed = load(folder), load(folder, reinitialize_layers=1)
    same = [
        all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
        for one, other in zip(plain.blocks, renewed.blocks, strict=True)
    ]
    assert same == [True, True, False]
    new_layer: Any = renewed.blocks[2]
    assert 0.01 < float(new_layer.attention.output.dense.weight.detach().std()) < 0.03
    with pytest.raises(ConfigError, match=r"`model.reinitialize_layers` \(4\): the model has only 3 layers"):
        load(folder, reinitialize_layers=4)


@pytest.mark.parametrize("freeze", ["none", 1])
def test_gradient_checkpointing_changes_nothing(tmp_path: Path, freeze: Any) -> None:
    folder = write_encoder(tmp_path)
    gradients = []
    for enabled in (False, True):
        model = load(folder, gradient_checkpointing=enabled, freeze=freeze).train()
        torch.manual_seed(5)
        model(*batch(model)).square().sum().backward()
        gradients.append({name: each.grad for name, each in model.named_parameters() if each.requires_grad})
    assert any("layer.1" in name for name in gradients[0])
    torch.testing.assert_close(*gradients)


def test_a_missing_layer_is_an_error(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_encoder(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks weights, of its layers: `bert.encoder.layer.1.output.dense.weight`"):
        load(folder)
    weights["encoder.layer.1.output.dense.weight"] = torch.zeros(32, 47)
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ConfigError, match=r"other shapes .*: `bert.encoder.layer.1.output.dense.weight`"):
        load(folder)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r"the weights of `.*` cannot be loaded: .* Copy the folder again"):
        load(folder)


def finetuned(folder: Path, labels: list[str], **settings: Any) -> str:
    """Write a model that is fine-tuned for labels, with a head of ones."""
    from transformers import AutoModelForSequenceClassification

    write_encoder(folder, **settings)
    loader: Any = AutoModelForSequenceClassification
    model = loader.from_pretrained(folder, id2label=dict(enumerate(labels)), num_labels=len(labels))
    model.classifier.weight.data.fill_(1.0)
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("labels", [LABELS, LABELS[::-1], ["a", "b", "c"], ["a", "b"]])
def test_head_is_kept_only_for_the_same_labels(tmp_path: Path, labels: list[str]) -> None:
    model = load(finetuned(tmp_path, labels))
    is_kept = bool((model.network.classifier.weight == 1.0).all())
    assert is_kept == (labels == LABELS)
    new = "none" if is_kept else "`classifier.bias`, `classifier.weight`"
    assert model.notes == [f"pretrained weights: new {new}; not used none"]


def test_notes_list_new_and_unused_weights(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_encoder(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path) | {f"cls.predictions.{number}": torch.zeros(1) for number in range(6)}
    save_file({name: weight for name, weight in weights.items() if "pooler" not in name}, path, {"format": "pt"})
    (note,) = load(folder).notes
    assert note.startswith("pretrained weights: new `bert.pooler.dense.bias`, `bert.pooler.dense.weight`, `classifier.")
    assert note.endswith("; not used " + ", ".join(f"`cls.predictions.{n}`" for n in range(4)) + " and 2 more")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path)
    path = tmp_path / "model.safetensors"
    from safetensors.torch import load_file, save_file

    weights = load_file(path)
    name = next(name for name in weights if name.endswith("layer.0.output.dense.weight"))
    weights[name][0, 0] = float("nan")
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ConfigError, match="are not finite numbers, so its weights are damaged"):
        load(folder)


@pytest.mark.parametrize("architecture", ["fnet", "convbert"])
def test_architecture_whose_logits_depend_on_padding_is_refused(tmp_path: Path, architecture: str) -> None:
    folder = write_encoder(tmp_path, architecture, embedding_size=32)
    with pytest.raises(ConfigError, match="padding changes the logits"):
        load(folder)


def test_network_that_does_not_run_is_refused(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path, "bart", d_model=32, encoder_layers=1, decoder_layers=1)
    with pytest.raises(ConfigError, match="does not run as a classifier: Each example must contain"):
        load(folder)


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_weights_of_half_precision_become_float32(tmp_path: Path, architecture: str) -> None:
    folder = write_encoder(tmp_path, architecture, dtype="bfloat16")
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    settings = Model(pretrained=folder)
    config = read_config(folder, settings, labels=["a", "b"], is_multilabel=False, pad=0)
    loaded = PretrainedClassifier.load(folder, config, settings)
    again = PretrainedClassifier(config, settings)  # of the other ranks, of a resumed run and of a bundle
    for model in (loaded, again):
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    again.load_state_dict(loaded.state_dict())
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(again.eval()(ids), loaded.eval()(ids), rtol=0, atol=0)


def test_frozen_layers_cannot_start_again(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path, "bert")
    load(folder, freeze=2, reinitialize_layers=1)
    for freeze in ("encoder", 3):
        with pytest.raises(ConfigError, match=r"`model\.freeze` would freeze layers with the random weights"):
            load(folder, freeze=freeze, reinitialize_layers=1)


@pytest.mark.parametrize("architecture", ALL)
def test_dropout_of_zero_leaves_none(tmp_path: Path, architecture: str) -> None:
    model = load(write_encoder(tmp_path, architecture), dropout=0.0, attention_dropout=0.0)
    shares = {module.p for module in model.modules() if isinstance(module, nn.Dropout | Dropout)}
    assert shares == (set() if architecture in ("llama", "qwen2") else {0.0})  # which have none


def test_gradient_checkpointing_that_an_architecture_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`model\.gradient_checkpointing`: .*MPNet.*Remove the key"):
        load(write_encoder(tmp_path, "mpnet"), gradient_checkpointing=True)


def test_depth_of_a_last_norm_is_that_of_the_top_layer() -> None:
    sizes = {"ffn_dim": 48, "word_embed_proj_dim": 16, "pad_token_id": 0, "num_labels": 3}
    config: Any = AutoConfig.for_model("opt", **SIZES, **sizes)
    depths = PretrainedClassifier(config, Model(pretrained="folder")).depths()
    assert {depths[name] for name in depths if "decoder.final_layer_norm" in name or "project_out" in name} == {3}
    assert {depths[name] for name in depths if "embed_tokens" in name or "project_in" in name} == {0}

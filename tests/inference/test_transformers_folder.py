"""The Transformers side of a bundle: its tokens, labels and probabilities are those of txclf."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from huggingface_hub import ModelCard

from tests.helpers.encoders import ALL, ARCHITECTURES, DECODERS, write_encoder
from tests.helpers.fine_tuned import LABELS, THRESHOLDS, fine_tuned
from txclf import Classifier
from txclf.config.sections import Model, Truncation
from txclf.core import storage
from txclf.core.errors import BundleError
from txclf.inference import bundle, transformers_folder
from txclf.inference.classifier import sigmoid, softmax
from txclf.model.pretrained import PretrainedClassifier, read_config

TEXTS = [
    "the quick brown fox",
    "five [SEP] boxing </s> wizards [CLS] jump <mask>",
    "naïve façade, 東京 and Straße: 1,234.5 items " * 4,
    "five boxing wizards jump quickly " * 4,
]
PAIRS = [(first, second) for first in ("", *TEXTS) for second in TEXTS]


def rows_of(columns: list[str]) -> list[tuple[str, ...]]:
    """Return rows of one or two texts. The second is never empty, because Transformers then leaves it out."""
    return [(text,) for text in ("", *TEXTS)] if len(columns) == 1 else list(PAIRS)


def scores_of_pipeline(folder: str, rows: list[tuple[str, ...]]) -> list[dict[str, float]]:
    """Return the probabilities of the labels by Transformers' own pipeline."""
    from transformers import pipeline

    make: Any = pipeline
    inputs = [row[0] if len(row) == 1 else {"text": row[0], "text_pair": row[1]} for row in rows]
    scores = make("text-classification", model=folder, top_k=None)(inputs, truncation=True)
    return [{one["label"]: one["score"] for one in row} for row in scores]


@pytest.mark.parametrize("task", ["classify", "multilabel"])
@pytest.mark.parametrize("columns", [["text"], ["title", "body"]])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_transformers_gives_the_answers_of_the_bundle(
    tmp_path: Path, architecture: str, columns: list[str], task: str
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = fine_tuned(tmp_path, architecture, task=task, data={"text": columns})
    classifier, rows = Classifier.load(folder), rows_of(columns)
    probabilities = classifier.probabilities(rows)
    assert probabilities.std(axis=0).max() > 0.01  # the texts matter
    for row, scores in zip(probabilities, scores_of_pipeline(folder, rows), strict=True):
        assert dict(zip(LABELS, row.tolist(), strict=True)) == pytest.approx(scores, abs=1e-5)
    loader: Any = AutoModelForSequenceClassification
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    columns_of_texts = [list(texts) for texts in zip(*rows, strict=True)]
    inputs = tokenizer(*columns_of_texts, truncation=True, padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = loader.from_pretrained(folder).eval()(**inputs).logits
    calibrated = sigmoid(logits.numpy()) if task == "multilabel" else softmax(logits.numpy())
    np.testing.assert_allclose(calibrated, probabilities, atol=1e-5)
    assert classifier.temperature != 1.0


@pytest.mark.parametrize("architecture", DECODERS)
def test_transformers_pads_batches_of_a_decoder(tmp_path: Path, architecture: str) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = fine_tuned(tmp_path, architecture)
    loader: Any = AutoModelForSequenceClassification
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(TEXTS, truncation=True, padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = loader.from_pretrained(folder).eval()(**inputs).logits
    np.testing.assert_allclose(softmax(logits.numpy()), Classifier.load(folder).probabilities(TEXTS), atol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_transformers_gives_the_answers_of_mean_pooling(tmp_path: Path, architecture: str) -> None:
    folder, rows = fine_tuned(tmp_path, architecture, model={"pooling": "mean"}), rows_of(["text"])
    probabilities = Classifier.load(folder).probabilities(rows)
    assert probabilities.std(axis=0).max() > 0.01
    for row, scores in zip(probabilities, scores_of_pipeline(folder, rows), strict=True):
        assert dict(zip(LABELS, row.tolist(), strict=True)) == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize("truncation", ["head", "tail"])
@pytest.mark.parametrize("columns", [["text"], ["title", "body"]])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tokenizer_gives_the_tokens_of_the_bundle(
    tmp_path: Path, architecture: str, columns: list[str], truncation: str
) -> None:
    from transformers import AutoTokenizer

    folder = fine_tuned(tmp_path, architecture, data={"text": columns, "truncation": truncation})
    classifier, tokenizer = Classifier.load(folder), AutoTokenizer.from_pretrained(folder)
    texts = rows_of(columns)
    rows = classifier.rows([pa.table({"input_ids": classifier.encode(texts)})])
    for number, row in enumerate(texts):
        ids, _, types, *_ = rows.pad(np.array([number]))
        expected = tokenizer(*row, truncation=True)
        assert ids[0].tolist() == expected["input_ids"]
        if types is not None:
            assert types[0].tolist() == expected["token_type_ids"]
    assert max(rows.lengths) == 16 - classifier.metadata.special_tokens.added  # type: ignore[union-attr]


@pytest.mark.parametrize("architecture", ALL)
def test_temperature_is_in_the_last_layer(tmp_path: Path, architecture: str) -> None:
    encoder = write_encoder(tmp_path, architecture)
    settings = Model(pretrained=encoder)
    config = read_config(encoder, settings, labels=["a", "b", "c"], is_multilabel=False, pad=1)
    model = PretrainedClassifier.load(encoder, config, settings).eval()
    files = transformers_folder.files(encoder, config, 16, Truncation())
    weights = transformers_folder.exported(model.state_dict(), files, 2.0)
    other = transformers_folder.network(files).eval()
    other.load_state_dict(transformers_folder.imported(weights, other, 1.0))
    ids = torch.arange(10, 20)[None]
    torch.testing.assert_close(other(ids) * 2.0, model(ids))
    other.load_state_dict(transformers_folder.imported(weights, other, 2.0))
    torch.testing.assert_close(other(ids), model(ids))
    assert json.loads(files["config.json"])["id2label"] == {"0": "a", "1": "b", "2": "c"}


def test_files_hold_nothing_of_the_machine(tmp_path: Path) -> None:
    folder = fine_tuned(tmp_path)
    for name in ("config.json", "tokenizer_config.json", bundle.CARD):
        assert os.fspath(tmp_path) not in Path(folder, name).read_text()
    settings = storage.read_json(f"{folder}/tokenizer_config.json")
    assert settings["model_max_length"] == 16
    assert not settings.keys() & {"max_length", "stride", "is_local"}  # the original pads and truncates to 8


def test_card_is_read_by_the_hub(tmp_path: Path) -> None:
    folder = fine_tuned(tmp_path, task="multilabel")
    card = ModelCard.load(f"{folder}/{bundle.CARD}")
    data = card.data.to_dict()
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-classification")
    assert [(one.metric_name, one.metric_value) for one in card.data.eval_results] == [
        ("accuracy", 0.5),
        ("f1_macro", 0.25),
    ]
    assert f"from {min(THRESHOLDS.values()):.3f}" in card.text
    assert 'Classifier.load("this/folder")' in card.text
    assert 'pipeline("text-classification", model="this/folder", top_k=None)' in card.text


def test_bundle_loads_without_ray_and_lightning(tmp_path: Path) -> None:
    folder = fine_tuned(tmp_path)
    code = f"""
import sys
for name in ("ray", "pytorch_lightning", "lightning_fabric", "lightning"):
    sys.modules[name] = None  # importing it raises ImportError
from txclf import Classifier
print(Classifier.load({folder!r})(["the quick fox"])[0].probability)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(Classifier.load(folder)(["the quick fox"])[0].probability)


def test_bundle_without_transformers_names_the_extra(tmp_path: Path) -> None:
    folder = fine_tuned(tmp_path)
    code = f"""
import sys
sys.modules["transformers"] = None
from txclf.cli.main import main
sys.argv = ["txclf", "predict", {folder!r}, "{tmp_path}/rows.csv", "--out", "{tmp_path}/out.csv"]
main()
"""
    Path(tmp_path, "rows.csv").write_text("text\nfox\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error: this model bundle needs the package `transformers`. Run `pip install 'txclf[pretrained]'`." in (
        done.stderr
    )


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_damaged_file_raises(tmp_path: Path, name: str) -> None:
    folder = fine_tuned(tmp_path)
    path = Path(folder, name)
    content = path.read_text()
    path.write_text(content[:-20])
    with pytest.raises(BundleError, match=f"{name}`: the content changed after it was saved. Copy the whole folder"):
        Classifier.load(folder)
    path.unlink()
    with pytest.raises(BundleError, match=f"{name}`: missing, so the bundle is damaged. Copy the whole folder"):
        Classifier.load(folder)


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"model_type": "bert", "hidden_size": 33}', '{"model_type": "x"}']
)
def test_config_of_another_program_raises(tmp_path: Path, content: str) -> None:
    folder = fine_tuned(tmp_path)
    Path(folder, "config.json").write_text(content)
    metadata = storage.read_json(f"{folder}/{bundle.METADATA}")
    metadata["sha256"]["config.json"] = bundle._sha256(content.encode())
    storage.write_json(f"{folder}/{bundle.METADATA}", metadata)
    with pytest.raises(BundleError, match=r"`config.json`: Transformers 5\.\d+\.\d+ cannot make a model of it: "):
        Classifier.load(folder)


def test_bundle_without_its_config_raises(tmp_path: Path) -> None:
    folder = fine_tuned(tmp_path)
    metadata = storage.read_json(f"{folder}/{bundle.METADATA}")
    del metadata["sha256"]["config.json"]
    storage.write_json(f"{folder}/{bundle.METADATA}", metadata)
    with pytest.raises(BundleError, match=r"`config.json`: "):
        Classifier.load(folder)


def test_bundle_moves_with_its_folder(tmp_path: Path) -> None:
    folder = fine_tuned(tmp_path)
    expected = Classifier.load(folder)(TEXTS)
    moved = os.fspath(tmp_path / "moved")
    shutil.move(folder, moved)
    shutil.rmtree(tmp_path / "encoder")
    assert Classifier.load(moved)(TEXTS) == expected

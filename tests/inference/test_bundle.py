"""Bundle files: content, older formats, and the error for each kind of damage."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import txclf
from tests.helpers.bundles import TEXTS, copied
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.core.errors import BundleError
from txclf.data.tokenizer import train_tokenizer
from txclf.inference import bundle
from txclf.inference.classifier import Classifier
from txclf.model.classifier import TransformerClassifier


@pytest.fixture(scope="module")
def classifier(tiny_bundle: str) -> Classifier:
    """Load the tiny bundle."""
    return Classifier.load(tiny_bundle)


@pytest.fixture
def copy(tmp_path: Path, tiny_bundle: str) -> Path:
    """Copy the tiny bundle to `model`, where it may be damaged."""
    return copied(tiny_bundle, tmp_path)


def test_save_writes_files_metadata_and_card(tiny_bundle: str, classifier: Classifier) -> None:
    assert sorted(os.listdir(tiny_bundle)) == ["README.md", "model.json", "model.safetensors", "tokenizer.json"]
    metadata = classifier.metadata
    assert (metadata.format, metadata.version, metadata.task) == (2, txclf.__version__, "classify")
    assert metadata.labels == classifier.labels == ["low", "mid", "high"]
    assert (metadata.text_columns, metadata.max_length) == (["text"], 16)
    assert metadata.vocab_size == classifier.tokenizer.get_vocab_size()
    assert (metadata.metrics, metadata.rows) == ({"valid_loss": 1.25}, {"train": 1234, "valid": 56})
    card = Path(tiny_bundle, "README.md").read_text()
    for text in (
        "# tiny",
        "`low`, `mid`, `high`",
        "train 1,234, valid 56",
        "first 16 tokens",
        "| valid_loss | 1.2500 |",
    ):
        assert text in card


def test_load_bundle_without_calibration_key_has_temperature_1(copy: Path, classifier: Classifier) -> None:
    metadata = storage.read_json(copy / bundle.METADATA)
    del metadata["calibration"]
    storage.write_json(copy / bundle.METADATA, metadata)
    old = Classifier.load(str(copy))
    assert old.temperature == 1.0
    assert old(TEXTS) == classifier(TEXTS)


@pytest.mark.parametrize("name", [bundle.WEIGHTS, bundle.TOKENIZER])
@pytest.mark.parametrize("way", ["flipped", "cut", "empty", "more"])
def test_load_damaged_file_raises(copy: Path, name: str, way: str) -> None:
    content = (copy / name).read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    ways = {"flipped": bytes(flipped), "cut": content[:-1], "empty": b"", "more": content + b" "}
    (copy / name).write_bytes(ways[way])
    with pytest.raises(BundleError, match=f"model/{name}`: the content changed after it was saved. Copy the whole"):
        Classifier.load(str(copy))


@pytest.mark.parametrize("name", [bundle.WEIGHTS, bundle.TOKENIZER])
def test_load_missing_file_raises(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"model/{name}`: missing, so the bundle is damaged. Copy the whole folder"):
        Classifier.load(str(copy))


def test_load_does_not_need_the_card(copy: Path, classifier: Classifier) -> None:
    (copy / bundle.CARD).unlink()
    assert Classifier.load(str(copy))(TEXTS) == classifier(TEXTS)


Change = Callable[[dict[str, Any]], Any]
CHANGES: dict[str, tuple[Change, str]] = {
    "older": (lambda data: data.update(format=0), "format 0, but txclf .* reads formats 1 to 2"),
    "newer": (lambda data: data.update(format=3), "format 3, but txclf .* reads formats 1 to 2"),
    "no format": (lambda data: data.pop("format"), "format None, but txclf"),
    "format as text": (lambda data: data.update(format="1"), "format '1', but txclf"),
    "another task": (lambda data: data.update(task="translate"), "damaged at `task`: "),
    "no labels": (lambda data: data.pop("labels"), "damaged at `labels`: "),
    "labels of another type": (lambda data: data.update(labels=[1, 2, 3]), r"damaged at `labels\.0`: "),
    "one label too few": (lambda data: data["labels"].pop(), r"weights do not match `model\.json`: "),
    "an unknown key": (lambda data: data.update(new=1), "damaged at `new`: "),
    "an unknown setting": (lambda data: data["model"].update(new=1), r"damaged at `model\.new`: "),
    "heads": (lambda data: data["model"].update(num_heads=3), r"damaged at `model`: .*must divide `hidden_size`"),
    "width": (lambda data: data["model"].update(hidden_size=32), r"weights do not match `model\.json`: "),
    "one layer too many": (lambda data: data["model"].update(num_layers=2), r"weights do not match `model\.json`: "),
    "pooling": (lambda data: data["model"].update(pooling="cls"), r"weights do not match `model\.json`: "),
    "no tokens": (lambda data: data.update(max_length=0), "damaged at `max_length`: "),
    "no vocabulary": (lambda data: data.update(vocab_size=-1), "damaged at `vocab_size`: "),
    "a huge vocabulary": (lambda data: data.update(vocab_size=10**14), r"weights do not match `model\.json`: "),
    "no checksums": (lambda data: data.update(sha256={}), r"model\.safetensors`: the content changed after"),
    "a temperature of 0": (
        lambda data: data.update(calibration={"temperature": 0, "error_before": 0, "error_after": 0, "rows": 1}),
        r"damaged at `calibration\.temperature`: ",
    ),
    "no quantiles": (lambda data: data.update(conformal={"rows": 2, "quantiles": []}), "`conformal`: .*0 `quantiles`"),
    "too many quantiles": (
        lambda data: data.update(conformal={"rows": 9**9, "quantiles": [0.5] * 1001}),
        "`conformal`: .*1,001 `quantiles` of 387,420,489 rows",
    ),
    "quantiles that grow": (
        lambda data: data.update(conformal={"rows": 2, "quantiles": [0.1, 0.2]}),
        "`conformal`: .*not in descending order",
    ),
    "a quantile that is no probability": (
        lambda data: data.update(conformal={"rows": 1, "quantiles": [1.5]}),
        r"damaged at `conformal\.quantiles\.0`: ",
    ),
    "quantiles of no row": (
        lambda data: data.update(conformal={"rows": 0, "quantiles": []}),
        r"damaged at `conformal\.rows`: ",
    ),
    "other checksums": (lambda data: data["sha256"].update({bundle.TOKENIZER: "0"}), r"tokenizer\.json`: the content"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_load_changed_metadata_raises(copy: Path, change: str) -> None:
    apply, message = CHANGES[change]
    metadata = storage.read_json(copy / bundle.METADATA)
    apply(metadata)
    storage.write_json(copy / bundle.METADATA, metadata)
    with pytest.raises(BundleError, match=message):
        Classifier.load(str(copy))


@pytest.mark.parametrize("content", [b"", b'{"format": 1', b"\xff\xfe"])
def test_load_metadata_that_is_not_json_raises(copy: Path, content: bytes) -> None:
    (copy / bundle.METADATA).write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.json`: not valid JSON: .*\. Copy the whole folder again"):
        Classifier.load(str(copy))


@pytest.mark.parametrize("content", ["[]", "1", "null", "{}"])
def test_load_json_of_another_program_raises(copy: Path, content: str) -> None:
    (copy / bundle.METADATA).write_text(content)
    with pytest.raises(BundleError, match=r"model\.json`: format None, but txclf"):
        Classifier.load(str(copy))


def test_load_weights_of_another_model_raises(copy: Path) -> None:
    weights = load_file(copy / bundle.WEIGHTS)
    weights["other.weight"] = weights.pop("embedding.weight")
    save_file(weights, copy / bundle.WEIGHTS)
    metadata = storage.read_json(copy / bundle.METADATA)
    metadata["sha256"][bundle.WEIGHTS] = bundle._sha256((copy / bundle.WEIGHTS).read_bytes())
    storage.write_json(copy / bundle.METADATA, metadata)
    with pytest.raises(BundleError, match=r"(?s)weights do not match `model\.json`: .*embedding\.weight"):
        Classifier.load(str(copy))


def test_load_folder_without_bundle_raises(copy: Path) -> None:
    for folder in (copy.parent / "none", copy / bundle.CARD):
        with pytest.raises(BundleError, match=rf"`{folder}`: not a model bundle, it has no model\.json\. Pass the"):
            Classifier.load(str(folder))
    with pytest.raises(BundleError, match=rf"has no model\.json\. Pass `{copy}`\."):
        Classifier.load(str(copy.parent))


def test_save_writes_metadata_last(tmp_path: Path, tiny_run: RunConfig) -> None:
    tokenizer = train_tokenizer(tiny_run.tokenizer, ["fox fox"])
    model = TransformerClassifier(tiny_run.model, tokenizer.get_vocab_size(), 2, 16)
    with pytest.raises(ValueError, match="JSON"):
        bundle.save(
            str(tmp_path),
            tiny_run,
            model.state_dict(),
            labels=["a", "b"],
            tokenizers=[tokenizer.to_str()],
            metrics={"valid_loss": float("nan")},
            rows={},
        )
    assert json.loads((tmp_path / bundle.TOKENIZER).read_text())
    with pytest.raises(BundleError, match="not a model bundle"):
        Classifier.load(str(tmp_path))


def test_load_bundle_of_format_1_gives_its_probabilities() -> None:
    folder = Path(__file__).parent / "bundle_format_1"  # saved by the last version that wrote format 1
    expected = json.loads((folder / "expected.json").read_text())
    classifier = Classifier.load(str(folder))
    assert classifier.metadata.truncation.mode == "tail"
    found = classifier.probabilities([(text,) for text in expected["texts"]])
    np.testing.assert_allclose(found, expected["probabilities"], rtol=1e-6)

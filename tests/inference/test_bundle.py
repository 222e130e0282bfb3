"""The bundle: saved and loaded it says the same, without Ray or Lightning; damage has a message."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import txclf
from txclf.config.run_config import RunConfig
from txclf.config.sections import Model
from txclf.core import storage
from txclf.core.errors import BundleError
from txclf.data.tokenizer import train_tokenizer
from txclf.inference import bundle
from txclf.inference.classifier import Classifier, softmax
from txclf.model.classifier import TransformerClassifier

TEXTS = ["the quick brown fox", "", "a lazy dog jumps", "naïve 🎉 日本 " * 30, "fox", "the [PAD] fox"]


@pytest.fixture(scope="module")
def classifier(tiny_bundle: str) -> Classifier:
    return Classifier.load(tiny_bundle)


@pytest.fixture
def copy(tmp_path: Path, tiny_bundle: str) -> Path:
    """A bundle that may be damaged, at `model`."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "model"))


# ------------------------------------------------------------------------------------------------------ there and back


@pytest.mark.parametrize("pooling", ["mean", "max", "mean_max", "cls", "attention"])
@pytest.mark.parametrize("positions", ["rotary", "learned", "sinusoidal", "none"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_loaded_model_says_what_the_saved_one_said(
    tmp_path: Path, tiny_run: RunConfig, tiny_bundle: str, pooling: str, positions: str, norm: str
) -> None:
    settings = tiny_run.model.model_dump() | {
        "pooling": pooling,
        "position_encoding": positions,
        "norm": norm,
        "classifier_hidden_size": 8,
    }
    run = tiny_run.model_copy(update={"model": Model.model_validate(settings)})
    tokenizer = Path(tiny_bundle, bundle.TOKENIZER).read_text()
    reference = Classifier.load(tiny_bundle)
    torch.manual_seed(1)
    model = TransformerClassifier(run.model, reference.metadata.vocab_size, 3, run.tokenizer.max_length)
    bundle.save(
        str(tmp_path), run, model.state_dict(), labels=["a", "b", "c"], tokenizers=[tokenizer], metrics={}, rows={}
    )
    expected = Classifier(reference.metadata, reference.tokenizer, model)
    rows = [(text,) for text in TEXTS]
    assert np.array_equal(Classifier.load(str(tmp_path)).probabilities(rows), expected.probabilities(rows))


def test_what_a_bundle_holds(tiny_bundle: str, classifier: Classifier) -> None:
    assert sorted(os.listdir(tiny_bundle)) == ["card.md", "model.json", "model.safetensors", "tokenizer.json"]
    description = classifier.metadata
    assert (description.format, description.version, description.task) == (2, txclf.__version__, "classify")
    assert description.labels == classifier.labels == ["low", "mid", "high"]
    assert (description.text_columns, description.max_length) == (["text"], 16)
    assert description.vocab_size == classifier.tokenizer.get_vocab_size()
    assert (description.metrics, description.rows) == ({"valid_loss": 1.25}, {"train": 1234, "valid": 56})
    card = Path(tiny_bundle, "card.md").read_text()
    for part in (
        "# tiny",
        "`low`, `mid`, `high`",
        "train 1,234, valid 56",
        "first 16 tokens",
        "| valid_loss | 1.2500 |",
    ):
        assert part in card


def test_a_path_a_uri_and_a_relative_path(
    tiny_bundle: str, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = classifier(TEXTS)
    assert Classifier.load(f"file://{tiny_bundle}")(TEXTS) == expected
    monkeypatch.chdir(Path(tiny_bundle).parent)
    assert Classifier.load("model/")(TEXTS) == expected


def test_predictions(classifier: Classifier) -> None:
    predictions = classifier(TEXTS)
    assert len(predictions) == len(TEXTS)
    assert predictions[0].probabilities != predictions[2].probabilities
    for prediction in predictions:
        assert list(prediction.probabilities) == ["low", "mid", "high"]
        assert sum(prediction.probabilities.values()) == pytest.approx(1.0, abs=1e-6)
        assert prediction.probability == max(prediction.probabilities.values())
        assert prediction.probabilities[prediction.label] == prediction.probability
        assert type(prediction.probability) is float


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4], [3, 3, 0]])
def test_results_are_in_the_order_of_the_texts_whatever_the_batches(
    classifier: Classifier, batch_size: int, order: list[int]
) -> None:
    expected = np.concatenate([classifier.probabilities([(TEXTS[number],)]) for number in order])
    found = classifier.probabilities([(TEXTS[number],) for number in order], batch_size)
    assert found == pytest.approx(expected, abs=1e-6)
    assert [prediction.label for prediction in classifier([TEXTS[number] for number in order], batch_size)] == [
        classifier.labels[row.argmax()] for row in expected
    ]


def test_texts_are_cut_where_the_model_was_trained_to_cut(classifier: Classifier) -> None:
    long = "fox dog " * 500
    assert classifier([long]) == classifier([long + "more and more"])


def test_several_columns_are_one_text(classifier: Classifier) -> None:
    one, other = classifier.probabilities([("fox", "dog"), ("dog", "fox")])
    assert not np.allclose(one, other)
    assert np.allclose(classifier.probabilities([("fox", "dog")])[0], one, atol=1e-6)


def test_no_texts_and_a_bare_text(classifier: Classifier) -> None:
    assert classifier([]) == []
    assert classifier.probabilities([]).shape == (0, 3)
    with pytest.raises(TypeError, match="expected a list of texts"):
        classifier("the quick brown fox")


def test_softmax() -> None:
    logits = np.array([[0.0, 0.0], [1000.0, 0.0], [-1000.0, -1001.0]], np.float32)
    found = softmax(logits)
    assert found == pytest.approx(np.array([[0.5, 0.5], [1.0, 0.0], [0.731059, 0.268941]]), abs=1e-6)
    assert softmax(np.empty((0, 2), np.float32)).shape == (0, 2)


def test_it_loads_where_ray_and_lightning_are_not(tiny_bundle: str, classifier: Classifier) -> None:
    code = f"""
import sys
for name in ("ray", "pytorch_lightning", "lightning", "lightning_fabric", "sklearn", "torchmetrics", "pickle5"):
    sys.modules[name] = None  # importing it raises ImportError
from txclf import Classifier
print(repr(Classifier.load({tiny_bundle!r})({TEXTS!r})[3].probability))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert float(done.stdout) == pytest.approx(classifier(TEXTS)[3].probability, abs=1e-6)


def test_a_calibrated_bundle_divides_its_logits_by_the_temperature(copy: Path, classifier: Classifier) -> None:
    description = storage.read_json(copy / bundle.METADATA)
    assert description["calibration"] is None
    description["calibration"] = {"temperature": 4.0, "error_before": 0.2, "error_after": 0.1, "rows": 56}
    storage.write_json(copy / bundle.METADATA, description)
    rows = [(text,) for text in TEXTS]
    plain, cooled = classifier.probabilities(rows), Classifier.load(str(copy)).probabilities(rows)
    expected = plain.astype(np.float64) ** 0.25  # a power of probabilities is a division of logits
    assert cooled == pytest.approx(expected / expected.sum(axis=1, keepdims=True), abs=1e-6)
    assert (cooled.argmax(axis=1) == plain.argmax(axis=1)).all()


def test_a_bundle_from_before_there_was_calibration_loads(copy: Path, classifier: Classifier) -> None:
    description = storage.read_json(copy / bundle.METADATA)
    del description["calibration"]
    storage.write_json(copy / bundle.METADATA, description)
    old = Classifier.load(str(copy))
    assert old.temperature == 1.0
    assert old(TEXTS) == classifier(TEXTS)


# --------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("name", [bundle.WEIGHTS, bundle.TOKENIZER])
@pytest.mark.parametrize("way", ["flipped", "cut", "empty", "more"])
def test_a_damaged_file(copy: Path, name: str, way: str) -> None:
    content = (copy / name).read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    ways = {"flipped": bytes(flipped), "cut": content[:-1], "empty": b"", "more": content + b" "}
    (copy / name).write_bytes(ways[way])
    with pytest.raises(BundleError, match=f"model/{name}`: the content changed after it was saved. Copy the whole"):
        Classifier.load(str(copy))


@pytest.mark.parametrize("name", [bundle.WEIGHTS, bundle.TOKENIZER])
def test_a_missing_file(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"model/{name}`: missing, so the bundle is damaged. Copy the whole folder"):
        Classifier.load(str(copy))


def test_the_card_is_for_people_alone(copy: Path, classifier: Classifier) -> None:
    (copy / bundle.CARD).unlink()
    assert Classifier.load(str(copy))(TEXTS) == classifier(TEXTS)


Change = Callable[[dict[str, Any]], Any]
CHANGES: dict[str, tuple[Change, str]] = {
    "older": (lambda found: found.update(format=0), "format 0, but txclf .* reads formats 1 to 2"),
    "newer": (lambda found: found.update(format=3), "format 3, but txclf .* reads formats 1 to 2"),
    "no format": (lambda found: found.pop("format"), "format None, but txclf"),
    "format as text": (lambda found: found.update(format="1"), "format '1', but txclf"),
    "another task": (lambda found: found.update(task="translate"), "damaged at `task`: "),
    "no labels": (lambda found: found.pop("labels"), "damaged at `labels`: "),
    "labels of another type": (lambda found: found.update(labels=[1, 2, 3]), r"damaged at `labels\.0`: "),
    "a label less": (lambda found: found["labels"].pop(), r"weights do not match `model\.json`: "),
    "an unknown key": (lambda found: found.update(new=1), "damaged at `new`: "),
    "an unknown setting": (lambda found: found["model"].update(new=1), r"damaged at `model\.new`: "),
    "heads": (lambda found: found["model"].update(num_heads=3), r"damaged at `model`: .*must divide `hidden_size`"),
    "width": (lambda found: found["model"].update(hidden_size=32), r"weights do not match `model\.json`: "),
    "a layer more": (lambda found: found["model"].update(num_layers=2), r"weights do not match `model\.json`: "),
    "pooling": (lambda found: found["model"].update(pooling="cls"), r"weights do not match `model\.json`: "),
    "no tokens": (lambda found: found.update(max_length=0), "damaged at `max_length`: "),
    "no vocabulary": (lambda found: found.update(vocab_size=-1), "damaged at `vocab_size`: "),
    "a huge vocabulary": (lambda found: found.update(vocab_size=10**14), r"weights do not match `model\.json`: "),
    "no sums": (lambda found: found.update(sha256={}), r"model\.safetensors`: the content changed after"),
    "a temperature of 0": (
        lambda found: found.update(calibration={"temperature": 0, "error_before": 0, "error_after": 0, "rows": 1}),
        r"damaged at `calibration\.temperature`: ",
    ),
    "other sums": (lambda found: found["sha256"].update({bundle.TOKENIZER: "0"}), r"tokenizer\.json`: the content"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_description(copy: Path, change: str) -> None:
    apply, message = CHANGES[change]
    description = storage.read_json(copy / bundle.METADATA)
    apply(description)
    storage.write_json(copy / bundle.METADATA, description)
    with pytest.raises(BundleError, match=message):
        Classifier.load(str(copy))


@pytest.mark.parametrize("content", [b"", b'{"format": 1', b"\xff\xfe"])
def test_a_description_that_is_no_json(copy: Path, content: bytes) -> None:
    (copy / bundle.METADATA).write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.json`: not valid JSON: .*\. Copy the whole folder again"):
        Classifier.load(str(copy))


@pytest.mark.parametrize("content", ["[]", "1", "null", "{}"])
def test_a_foreign_description(copy: Path, content: str) -> None:
    (copy / bundle.METADATA).write_text(content)
    with pytest.raises(BundleError, match=r"model\.json`: format None, but txclf"):
        Classifier.load(str(copy))


def test_weights_of_another_model_under_a_right_sum(copy: Path) -> None:
    weights = load_file(copy / bundle.WEIGHTS)
    weights["other.weight"] = weights.pop("embedding.weight")
    save_file(weights, copy / bundle.WEIGHTS)
    description = storage.read_json(copy / bundle.METADATA)
    description["sha256"][bundle.WEIGHTS] = bundle._sha256((copy / bundle.WEIGHTS).read_bytes())
    storage.write_json(copy / bundle.METADATA, description)
    with pytest.raises(BundleError, match=r"(?s)weights do not match `model\.json`: .*embedding\.weight"):
        Classifier.load(str(copy))


def test_a_folder_that_is_no_bundle(copy: Path) -> None:
    for folder in (copy.parent / "none", copy / bundle.CARD):
        with pytest.raises(BundleError, match=rf"`{folder}`: not a model bundle, it has no model\.json\. Pass the"):
            Classifier.load(str(folder))
    with pytest.raises(BundleError, match=rf"has no model\.json\. Pass `{copy}`\."):
        Classifier.load(str(copy.parent))


def test_a_bundle_counts_once_its_description_is_there(tmp_path: Path, tiny_run: RunConfig) -> None:
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

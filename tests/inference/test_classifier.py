"""Classifier: predictions, batching, calibration, loading without Ray or Lightning."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.helpers.bundles import TEXTS, copied
from tests.helpers.fine_tuned import fine_tuned
from tests.helpers.serving import MODEL, untrained
from txclf.config.run_config import RunConfig
from txclf.config.sections import Model
from txclf.core import storage
from txclf.core.errors import BundleError, ConfigError
from txclf.data.batches import TokenRows
from txclf.inference import bundle
from txclf.inference.classifier import Classifier, sigmoid, softmax
from txclf.model.classifier import TransformerClassifier
from txclf.model.pooled_vectors import Pooling, pooled
from txclf.model.pretrained import PretrainedClassifier


@pytest.fixture(scope="module")
def classifier(tiny_bundle: str) -> Classifier:
    """Load the tiny bundle."""
    return Classifier.load(tiny_bundle)


@pytest.mark.parametrize("pooling", ["mean", "max", "mean_max", "cls", "attention"])
@pytest.mark.parametrize("positions", ["rotary", "learned", "sinusoidal", "none"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_load_gives_the_probabilities_of_the_saved_model(
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


def test_from_config_gives_the_probabilities_of_the_bundle(
    tiny_run: RunConfig, tiny_bundle: str, classifier: Classifier
) -> None:
    weights = classifier.model.state_dict()
    tokenizer = Path(tiny_bundle, bundle.TOKENIZER).read_text()
    same = Classifier.from_config(tiny_run, weights, ["low", "mid", "high"], tokenizer)
    assert same(TEXTS) == classifier(TEXTS)
    assert same.temperature == 1.0


def test_load_accepts_path_uri_and_relative_path(
    tiny_bundle: str, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = classifier(TEXTS)
    assert Classifier.load(f"file://{tiny_bundle}")(TEXTS) == expected
    monkeypatch.chdir(Path(tiny_bundle).parent)
    assert Classifier.load("model/")(TEXTS) == expected


def test_network_only_keeps_device_and_folder(tiny_bundle: str) -> None:
    classifier = Classifier.load(tiny_bundle)
    assert classifier.network_only().folder == tiny_bundle
    # A device that is never the default.
    network = Classifier(classifier.metadata, classifier.tokenizer, classifier.model, "meta").network_only()
    assert network.device.type == "meta"
    assert {weight.device.type for weight in network.model.parameters()} == {"meta"}


def test_load_seq2seq_bundle_raises(tmp_path: Path) -> None:
    folder = untrained(tmp_path, task="seq2seq", data={"target": "target"})
    with pytest.raises(BundleError, match=r"a model of `task: seq2seq`\. Load it with `Seq2Seq\.load`\."):
        Classifier.load(folder)


def test_call_predictions_are_consistent(classifier: Classifier) -> None:
    predictions = classifier(TEXTS)
    assert len(predictions) == len(TEXTS)
    assert predictions[0].probabilities != predictions[2].probabilities
    for prediction in predictions:
        assert list(prediction.probabilities) == ["low", "mid", "high"]
        assert sum(prediction.probabilities.values()) == pytest.approx(1.0, abs=1e-6)
        assert prediction.probability == max(prediction.probabilities.values())
        assert prediction.probabilities[prediction.label] == prediction.probability
        assert prediction.labels == [prediction.label]
        assert type(prediction.probability) is float


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4], [3, 3, 0]])
def test_probabilities_follow_the_order_of_the_texts_for_any_batch_size(
    classifier: Classifier, batch_size: int, order: list[int]
) -> None:
    expected = np.concatenate([classifier.probabilities([(TEXTS[number],)]) for number in order])
    probabilities = classifier.probabilities([(TEXTS[number],) for number in order], batch_size)
    assert probabilities == pytest.approx(expected, abs=1e-6)
    assert [prediction.label for prediction in classifier([TEXTS[number] for number in order], batch_size)] == [
        classifier.labels[row.argmax()] for row in expected
    ]


def test_call_long_text_is_truncated_as_in_training(classifier: Classifier) -> None:
    long = "fox dog " * 500
    assert classifier([long]) == classifier([long + "more and more"])


def test_probabilities_depend_on_the_order_of_columns(tmp_path: Path) -> None:
    pairs = Classifier.load(untrained(tmp_path, data={"text": ["title", "body"]}))
    one, other = pairs.probabilities([("fox", "dog"), ("dog", "fox")])
    assert not np.allclose(one, other)
    assert np.allclose(pairs.probabilities([("fox", "dog")])[0], one, atol=1e-6)


def test_call_without_texts_returns_nothing(classifier: Classifier) -> None:
    assert classifier([]) == []
    assert classifier.probabilities([]).shape == (0, 3)


def test_call_bare_string_raises_type_error(classifier: Classifier) -> None:
    for answer in (classifier, classifier.probabilities):
        with pytest.raises(TypeError, match="expected a list of texts"):
            answer("the quick brown fox")


def test_call_rows_of_other_columns_raise_type_error(tmp_path: Path, classifier: Classifier) -> None:
    pairs = Classifier.load(untrained(tmp_path, data={"text": ["title", "body"]}))
    for answer in (pairs, pairs.probabilities):
        with pytest.raises(TypeError, match=r"^expected 2 text\(s\) per row \(title, body\), not \('fox',\)$"):
            answer(["fox"])
    row = ("the fox", "lazy dog")
    assert pairs([row])[0].probability == pairs.probabilities([row]).max()
    assert np.array_equal(classifier.probabilities(["fox"]), classifier.probabilities([("fox",)]))


def test_predicted_labels_multilabel_reach_their_thresholds(tmp_path: Path) -> None:
    classifier = Classifier.load(untrained(tmp_path, task="multilabel"))
    assert classifier.is_multilabel
    assert classifier.thresholds.tolist() == pytest.approx([0.0, 0.3, 1.0])
    rows = np.array([[0.1, 0.3, 0.9], [0.2, 0.1, 1.0]], np.float32)
    assert classifier.predicted_labels(rows) == [["mid", "low"], ["high", "low"]]
    probabilities = classifier.probabilities([("fox",)])
    np.testing.assert_allclose(probabilities, sigmoid(classifier.logits(_rows(classifier, "fox"))), rtol=1e-6)


def _rows(classifier: Classifier, text: str) -> TokenRows:
    table = pa.table({"input_ids": classifier.encode([(text,)]), "label": pa.array([0], pa.int32())})
    return classifier.rows([table])


def test_softmax_of_large_logits_is_finite() -> None:
    logits = np.array([[0.0, 0.0], [1000.0, 0.0], [-1000.0, -1001.0]], np.float32)
    expected = np.array([[0.5, 0.5], [1.0, 0.0], [0.731059, 0.268941]])
    assert softmax(logits) == pytest.approx(expected, abs=1e-6)
    assert softmax(np.empty((0, 2), np.float32)).shape == (0, 2)


def test_sigmoid_of_large_logits_is_finite() -> None:
    logits = np.array([[0.0, 1000.0, -1000.0, 2.0]], np.float32)
    assert sigmoid(logits, 2.0) == pytest.approx(np.array([[0.5, 1.0, 0.0, 0.731059]]), abs=1e-6)


def test_load_works_without_ray_and_lightning(tiny_bundle: str, classifier: Classifier) -> None:
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


def test_calibrated_bundle_divides_logits_by_the_temperature(
    tmp_path: Path, tiny_bundle: str, classifier: Classifier
) -> None:
    copy = copied(tiny_bundle, tmp_path)
    metadata = storage.read_json(copy / bundle.METADATA)
    assert metadata["calibration"] is None
    metadata["calibration"] = {"temperature": 4.0, "error_before": 0.2, "error_after": 0.1, "rows": 56}
    storage.write_json(copy / bundle.METADATA, metadata)
    rows = [(text,) for text in TEXTS]
    plain, cooled = classifier.probabilities(rows), Classifier.load(str(copy)).probabilities(rows)
    expected = plain.astype(np.float64) ** 0.25  # dividing logits is taking a root of probabilities
    assert cooled == pytest.approx(expected / expected.sum(axis=1, keepdims=True), abs=1e-6)
    assert (cooled.argmax(axis=1) == plain.argmax(axis=1)).all()


@pytest.mark.parametrize(("pooling", "norm"), [("mean", "post"), ("cls", "pre"), ("mean_max", "pre")])
def test_embed_gives_the_vectors_that_the_head_reads(tmp_path: Path, pooling: str, norm: str) -> None:
    classifier = Classifier.load(untrained(tmp_path, model={**MODEL, "pooling": pooling, "norm": norm}))
    vectors = classifier.embed(TEXTS)
    assert vectors.shape == (len(TEXTS), MODEL["hidden_size"] * (2 if pooling == "mean_max" else 1))
    model = classifier.model
    assert isinstance(model, TransformerClassifier)
    with torch.inference_mode():
        logits = model.head(torch.from_numpy(vectors).to(classifier.device)).cpu().numpy()
    expected = classifier.logits(classifier.text_rows([(text,) for text in TEXTS]))
    assert np.allclose(logits, expected, atol=1e-5)
    alone = np.concatenate([classifier.embed([text]) for text in TEXTS])
    assert np.allclose(vectors, alone, atol=1e-6)
    assert np.allclose(classifier.embed(TEXTS[::-1], batch_size=2)[::-1], vectors, atol=1e-6)
    assert classifier.embed([]).shape == (0, vectors.shape[1])


@pytest.mark.parametrize(("architecture", "pooling"), [("bert", "first"), ("albert", "mean")])
def test_embed_of_a_fine_tuned_bundle_gives_its_pooled_vectors(
    tmp_path: Path, architecture: str, pooling: Pooling
) -> None:
    classifier = Classifier.load(fine_tuned(tmp_path, architecture))
    model = classifier.model
    assert isinstance(model, PretrainedClassifier)
    vectors = classifier.embed(TEXTS)
    assert vectors.shape == (len(TEXTS), model.network.config.hidden_size)
    for text, vector in zip(TEXTS, vectors, strict=True):
        ids, mask, segments, _, _ = classifier.text_rows([(text,)]).pad(np.arange(1))
        with torch.inference_mode():
            expected = pooled(model, ids, mask, segments, pooling)
        assert np.allclose(vector, expected, atol=1e-5)


def test_explain_gives_the_drop_in_log_odds_without_each_word(classifier: Classifier) -> None:
    explanation = classifier.explain("the quick fox", "mid")
    whole, without = classifier.probabilities([("the quick fox",), ("the fox",)])[:, classifier.labels.index("mid")]
    pieces = explanation.columns["text"]
    assert "".join(text for text, _ in pieces) == "the quick fox"
    assert explanation.label == "mid"
    assert explanation.probability == pytest.approx(whole, abs=1e-6)
    assert dict(pieces)["quick"] == pytest.approx(
        np.log(whole / (1 - whole)) - np.log(without / (1 - without)), abs=1e-5
    )
    assert classifier.explain("the quick fox").label == classifier(["the quick fox"])[0].label
    assert classifier.explain("fox").columns == {"text": [("fox", None)]}


def test_embed_and_explain_refuse_other_rows_and_labels(classifier: Classifier) -> None:
    with pytest.raises(TypeError, match="expected a list of texts"):
        classifier.embed("a text")
    for row in (("a", "b"), (3,)):
        with pytest.raises(TypeError, match=r"expected 1 text\(s\) per row \(text\)"):
            classifier.embed([row])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match=r"the model has no label `other`. Use one of `low`, `mid`, `high`"):
        classifier.explain("a text", "other")

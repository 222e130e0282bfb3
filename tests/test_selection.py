"""What a bundle is made of, after real runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from test_prepare import make_rows, write_csv
from test_train import go_on, tiny

from txclf import Classifier, calibration, checkpoints, evaluate, storage
from txclf.bundle import softmax
from txclf.config import RunConfig
from txclf.data import shards
from txclf.data.batches import TokenRows
from txclf.prepare import prepare
from txclf.selection import chosen
from txclf.train import Summary, check_folder, train

NOISY = ["train.epochs=8", "train.patience=0", "train.learning_rate=0.01", "train.keep_checkpoints=8"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Training and test files of rows of which some are labelled wrong, so that a model is too sure of itself."""
    folder, draw = tmp_path_factory.mktemp("noisy"), np.random.default_rng(0)
    rows = [
        (f"{text} {'good' if (label == 'pos') != (draw.random() < 0.3) else 'bad'} {draw.integers(100)}", label)
        for text, label in make_rows(700)
    ]
    return write_csv(folder / "train.csv", rows[:500]), write_csv(folder / "test.csv", rows[500:])


def trained(folder: Path, data: Sequence[str], *words: str) -> tuple[RunConfig, Summary]:
    run = tiny(folder, data[0], f"data.test={data[1]}", "data.valid_fraction=0.3", *NOISY, *words)
    check_folder(run, resume=False)
    return run, train(run, prepare(run), go_on)


def on_valid(run: RunConfig, summary: Summary) -> tuple[Classifier, np.ndarray, np.ndarray]:
    """The bundle, and its logits and labels of the validation rows."""
    manifest = shards.load_manifest(summary.prepared)
    rows = TokenRows([shards.read_split(summary.prepared, manifest, "valid", ["input_ids", "label"])])
    classifier = Classifier.load(f"{run.run_folder}/model")
    return classifier, classifier.logits(rows), rows.labels


def loss(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    return float(-np.log(softmax(logits, temperature)[np.arange(len(labels)), labels]).mean())


def test_a_bundle_is_calibrated_on_the_validation_rows(tmp_path: Path, data: tuple[str, str]) -> None:
    # By accuracy the chosen checkpoint is a late and overconfident one.
    run, summary = trained(tmp_path, data, "train.monitor=valid_accuracy")
    found = summary.calibration
    assert found
    classifier, logits, labels = on_valid(run, summary)
    assert classifier.temperature == found.temperature != 1.0
    assert found.temperature == pytest.approx(calibration.temperature(logits, labels), rel=1e-3)
    assert found.rows == len(labels)
    assert found.error_before == pytest.approx(calibration.error(logits, labels), abs=1e-3)
    assert found.error_after == pytest.approx(calibration.error(logits, labels, found.temperature), abs=1e-3)
    assert loss(logits, labels, found.temperature) < loss(logits, labels, 1.0)
    card = Path(run.run_folder, "model/card.md").read_text()
    assert f"calibrated on {len(labels)} validation rows: temperature {found.temperature:.3f}" in card
    assert Summary.model_validate(storage.read_json(f"{run.run_folder}/summary.json")) == summary
    # Evaluation uses it, and tells both errors on its own rows.
    result = evaluate.evaluate(run.run_folder, with_baseline=False)
    manifest = shards.load_manifest(summary.prepared)
    table = shards.read_split(summary.prepared, manifest, "test", ["input_ids", "label"])
    test_logits, test_labels = classifier.logits(TokenRows([table])), table["label"].to_numpy()
    assert result["loss"] == pytest.approx(loss(test_logits, test_labels, found.temperature), rel=1e-5)
    assert result["calibration_error_before"] == pytest.approx(calibration.error(test_logits, test_labels), abs=1e-6)
    expected = calibration.error(test_logits, test_labels, found.temperature)
    assert result["calibration_error"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("word", ["train.calibrate=false", "train.include_valid=true"])
def test_a_bundle_that_is_not_calibrated(tmp_path: Path, data: tuple[str, str], word: str) -> None:
    run, summary = trained(tmp_path, data, word)
    assert summary.calibration is None
    assert json.loads(Path(run.run_folder, "model/model.json").read_text())["calibration"] is None
    assert Classifier.load(f"{run.run_folder}/model").temperature == 1.0
    assert "not calibrated" in Path(run.run_folder, "model/card.md").read_text()
    result = evaluate.evaluate(run.run_folder, with_baseline=False)
    assert result["calibration_error_before"] == pytest.approx(result["calibration_error"], abs=1e-7)


def test_averaged_weights_are_calibrated_as_they_are_bundled(tmp_path: Path, data: tuple[str, str]) -> None:
    run, summary = trained(tmp_path, data, "train.average=0.95")
    _, logits, labels = on_valid(run, summary)
    assert summary.calibration
    assert summary.calibration.temperature == pytest.approx(calibration.temperature(logits, labels), rel=1e-3)
    again = chosen(run, summary.prepared, checkpoints.committed(f"{run.run_folder}/checkpoints"))
    assert (again.step, again.calibration) == (summary.best_step, summary.calibration)

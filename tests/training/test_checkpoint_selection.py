"""Weights, metrics and calibration that a run selects for its bundle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, f1_score

from tests.helpers.files import make_rows, write_csv
from tests.helpers.runs import go_on, tiny
from txclf import Classifier
from txclf.artifacts import checkpoints
from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.core import storage
from txclf.core.errors import DataError
from txclf.data import shards, shuffle_windows
from txclf.data.batches import TokenRows
from txclf.data.prepare import prepare
from txclf.evaluation import evaluate
from txclf.inference.classifier import softmax
from txclf.metrics import calibration
from txclf.training import checkpoint_selection
from txclf.training.checkpoint_selection import chosen
from txclf.training.train import RunSummary, check_folder, train

NOISY = [
    "train.epochs=8",
    "train.early_stopping_patience=0",
    "train.learning_rate=0.01",
    "train.keep_checkpoints=8",
    "train.precision=fp32",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Training and test files of rows of which some are labelled wrong, so that a model is too sure of itself."""
    folder, draw = tmp_path_factory.mktemp("noisy"), np.random.default_rng(0)
    rows = [
        (f"{text} {'good' if (label == 'pos') != (draw.random() < 0.3) else 'bad'} {draw.integers(100)}", label)
        for text, label in make_rows(700)
    ]
    return write_csv(folder / "train.csv", rows[:500]), write_csv(folder / "test.csv", rows[500:])


def trained(folder: Path, data: Sequence[str], *words: str) -> tuple[RunConfig, RunSummary]:
    run = tiny(folder, data[0], f"data.test={data[1]}", "data.valid_fraction=0.3", *NOISY, *words)
    check_folder(run, resume=False)
    return run, train(run, prepare(run), go_on)


def on_valid(run: RunConfig, summary: RunSummary) -> tuple[Classifier, np.ndarray, np.ndarray]:
    """Return the bundle, and its logits and labels of the validation rows."""
    manifest = shards.load_manifest(summary.prepared)
    rows = TokenRows([shards.read_split(summary.prepared, manifest, "valid", ["input_ids", "label"])])
    classifier = Classifier.load(f"{run.run_folder}/model")
    return classifier, classifier.logits(rows), rows.labels


def loss(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    return float(-np.log(softmax(logits, temperature)[np.arange(len(labels)), labels]).mean())


def test_chosen_is_calibrated_on_the_validation_rows(tmp_path: Path, data: tuple[str, str]) -> None:
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
    # Prediction sets are of the calibrated probabilities.
    sets = classifier.metadata.conformal
    assert sets
    assert sets.rows == len(labels)
    true = softmax(logits, found.temperature)[np.arange(len(labels)), labels]
    np.testing.assert_allclose(sets.quantiles, np.sort(true)[::-1], rtol=1e-3)
    card = Path(run.run_folder, "model/README.md").read_text()
    assert f"calibrated on {len(labels)} validation rows: temperature {found.temperature:.3f}" in card
    stored = storage.read_json(f"{run.run_folder}/summary.json")
    assert RunSummary.model_validate({**stored, "run_folder": run.run_folder}) == summary
    # Evaluation applies the temperature, and reports the error before and after it.
    result = evaluate.evaluate(run.run_folder, with_baseline=False)
    manifest = shards.load_manifest(summary.prepared)
    table = shards.read_split(summary.prepared, manifest, "test", ["input_ids", "label"])
    test_logits, test_labels = classifier.logits(TokenRows([table])), table["label"].to_numpy()
    assert result["loss"] == pytest.approx(loss(test_logits, test_labels, found.temperature), rel=1e-5)
    assert result["calibration_error_before"] == pytest.approx(calibration.error(test_logits, test_labels), abs=1e-6)
    expected = calibration.error(test_logits, test_labels, found.temperature)
    assert result["calibration_error"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("word", ["train.calibrate=false", "train.train_on_valid=true"])
def test_chosen_without_calibration_has_none(tmp_path: Path, data: tuple[str, str], word: str) -> None:
    run, summary = trained(tmp_path, data, word)
    assert summary.calibration is None
    assert json.loads(Path(run.run_folder, "model/model.json").read_text())["calibration"] is None
    classifier = Classifier.load(f"{run.run_folder}/model")
    assert classifier.temperature == 1.0
    assert (classifier.metadata.conformal is None) == run.train.train_on_valid
    assert "not calibrated" in Path(run.run_folder, "model/README.md").read_text()
    result = evaluate.evaluate(run.run_folder, with_baseline=False)
    assert result["calibration_error_before"] == pytest.approx(result["calibration_error"], abs=1e-7)


def test_chosen_ema_weights_are_calibrated(tmp_path: Path, data: tuple[str, str]) -> None:
    run, summary = trained(tmp_path, data, "train.ema_decay=0.95")
    _, logits, labels = on_valid(run, summary)
    assert summary.calibration
    assert summary.calibration.temperature == pytest.approx(calibration.temperature(logits, labels), rel=1e-3)
    again = chosen(run, summary.prepared, checkpoints.committed(f"{run.run_folder}/checkpoints"))
    assert (again.step, again.calibration) == (summary.best_step, summary.calibration)


def bundled(run: RunConfig) -> dict[str, torch.Tensor]:
    return load_file(f"{run.run_folder}/model/model.safetensors")


def mean_of(run: RunConfig, steps: Sequence[int], kind: str = "model") -> dict[str, torch.Tensor]:
    saved = [one for one in checkpoints.committed(f"{run.run_folder}/checkpoints") if one.step in steps]
    states = [checkpoints.load(one)[kind] for one in saved]
    assert len(states) == len(steps)
    return {name: torch.stack([state[name] for state in states]).mean(dim=0) for name in states[0]}


def calibrated_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    return min(loss(logits, labels, temperature) for temperature in calibration.TEMPERATURES)


def scores_of(run: RunConfig, summary: RunSummary) -> dict[str, float]:
    """Return the bundle's own scores, by scikit-learn."""
    _, logits, labels = on_valid(run, summary)
    predicted = logits.argmax(axis=1)
    return {
        "valid_loss": loss(logits, labels, 1.0),
        "valid_calibrated_loss": calibrated_loss(logits, labels),
        "valid_accuracy": accuracy_score(labels, predicted),
        "valid_f1_macro": f1_score(labels, predicted, average="macro"),
    }


NOISY_WEIGHTS = ["train.epochs=3", "train.schedule=constant", "train.eval_every=0.2", "train.average_checkpoints=3"]


@pytest.mark.parametrize("average", [0.0, 0.5])
def test_average_checkpoints_bundles_the_mean_if_it_is_as_good(
    tmp_path: Path, data: tuple[str, str], average: float
) -> None:
    # Without EMA the weights are noisy, and their mean is better than any checkpoint.
    run, summary = trained(tmp_path, data, *NOISY_WEIGHTS, f"train.ema_decay={average}")
    ranked = checkpoints.ranked(checkpoints.committed(f"{run.run_folder}/checkpoints"), run.train.monitor)
    assert summary.best_step == ranked[0].step
    best = ranked[0].metrics["valid_calibrated_loss"]
    three = sorted(one.step for one in ranked[:3])
    mean = mean_of(run, three, "average" if average else "model")
    manifest = shards.load_manifest(summary.prepared)
    tokenizer = Path(summary.prepared, "tokenizer.json").read_text()
    rows = TokenRows([shards.read_split(summary.prepared, manifest, "valid", ["input_ids", "label"])])
    logits = Classifier.from_config(run, mean, manifest.labels, tokenizer).logits(rows)
    is_as_good = calibrated_loss(logits, rows.labels) <= best
    assert is_as_good or average
    assert summary.averaged == (three if is_as_good else [])
    if is_as_good:
        assert all(torch.allclose(weight, mean[name], atol=1e-6) for name, weight in bundled(run).items())
        assert summary.best["valid_calibrated_loss"] <= best
    assert summary.best == pytest.approx(scores_of(run, summary), rel=1e-4)
    description = json.loads(Path(run.run_folder, "model/model.json").read_text())
    assert description["metrics"] == pytest.approx(summary.best)
    # It is the mean that is calibrated, not the best.
    _, logits, labels = on_valid(run, summary)
    assert summary.calibration
    assert summary.calibration.temperature == pytest.approx(calibration.temperature(logits, labels), rel=1e-3)


def edited(run: RunConfig, step: int, **metrics: float) -> None:
    """Overwrite a checkpoint of the run with negated weights."""
    folder = f"{run.run_folder}/checkpoints"
    (one,) = [saved for saved in checkpoints.committed(folder) if saved.step == step]
    state = checkpoints.load(one)
    state["model"] = {name: -weight for name, weight in state["model"].items()}
    checkpoints.save(folder, step, {**one.metrics, **metrics}, state)


def test_average_checkpoints_drops_a_worse_mean(tmp_path: Path, data: tuple[str, str]) -> None:
    run, summary = trained(tmp_path, data, "train.epochs=4", "train.calibrate=false")
    folder = f"{run.run_folder}/checkpoints"
    best, second = checkpoints.ranked(checkpoints.committed(folder), run.train.monitor)[:2]
    edited(run, second.step)
    two = run_config.with_overrides(run, {"train.average_checkpoints": 2})
    found = chosen(two, summary.prepared, checkpoints.committed(folder))
    assert (found.step, found.averaged, found.calibration) == (best.step, [], None)
    assert found.metrics == best.metrics
    assert all(torch.equal(weight, found.weights[name]) for name, weight in bundled(run).items())
    # Twice the same weights are as good as once: of equals the mean is taken.
    edited(run, second.step)
    same = checkpoints.load(best) | {"step": second.step}
    checkpoints.save(folder, second.step, second.metrics, same)
    found = chosen(two, summary.prepared, checkpoints.committed(folder))
    assert found.averaged == sorted([best.step, second.step])
    assert found.metrics == pytest.approx(best.metrics, rel=1e-5)


def test_average_checkpoints_with_fewer_checkpoints_averages_those(tmp_path: Path, data: tuple[str, str]) -> None:
    run, summary = trained(tmp_path, data, "train.average_checkpoints=5", "train.epochs=1")
    assert summary.averaged == []
    assert all(torch.equal(weight, mean_of(run, [summary.steps])[name]) for name, weight in bundled(run).items())
    run, summary = trained(tmp_path, data, "name=two", "train.average_checkpoints=5", "train.epochs=2")
    assert len(summary.averaged) in (0, 2)
    assert summary.best == pytest.approx(scores_of(run, summary), rel=1e-4)


def test_train_on_valid_averages_nothing(tmp_path: Path, data: tuple[str, str]) -> None:
    run, summary = trained(tmp_path, data, "train.average_checkpoints=3", "train.train_on_valid=true")
    assert summary.averaged == []
    assert all(torch.equal(weight, mean_of(run, [summary.steps])[name]) for name, weight in bundled(run).items())


def damaged_end(path: Path) -> None:
    """Overwrite the pages of the last row group of a Parquet file."""
    groups = pq.ParquetFile(path).metadata
    last = groups.row_group(groups.num_row_groups - 1)
    with path.open("r+b") as file:
        for number in range(last.num_columns):
            column = last.column(number)
            file.seek(column.dictionary_page_offset or column.data_page_offset)
            file.write(b"\xff" * column.total_compressed_size)


@pytest.mark.parametrize("task", ["classify", "multilabel", "seq2seq"])
def test_chosen_scores_a_sample_and_reads_no_further(
    tmp_path: Path,
    data: tuple[str, str],
    tag_data: tuple[str, str],
    pair_data: str,
    task: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = {"classify": data[0], "multilabel": tag_data[0], "seq2seq": pair_data}
    labels = {"classify": [], "multilabel": ["data.label=tags"], "seq2seq": ["data.text=source"]}
    words = [*labels[task], "train.epochs=1", "train.average_checkpoints=2", "train.eval_every=0.5"]
    run = tiny(tmp_path, files[task], f"task={task}", "data.valid_fraction=0.31", *words)
    for module in (shards, shuffle_windows):
        monkeypatch.setattr(module, "GROUP_ROWS", 16)
    prepared = prepare(run)
    check_folder(run, resume=False)
    summary = train(run, prepared, go_on)
    saved = checkpoints.committed(f"{run.run_folder}/checkpoints")
    manifest = shards.load_manifest(prepared)
    assert manifest.splits["valid"].rows > 64
    damaged_end(Path(prepared, manifest.splits["valid"].shards[-1].file))
    with pytest.raises(DataError, match="the shard cannot be read"):
        chosen(run, prepared, saved)
    monkeypatch.setattr(checkpoint_selection, "MAX_ROWS", 40)
    found = chosen(run, prepared, saved)
    assert found.step == summary.best_step
    if task == "seq2seq":
        return
    assert summary.calibration
    assert summary.calibration.rows == manifest.splits["valid"].rows
    assert found.calibration
    assert found.calibration.rows == 40
    first = next(shards.read_groups(prepared, manifest.splits["valid"].shards[0], list(run.task_spec.shard_columns)))
    assert first.num_rows == 16
    tokenizer = Path(prepared, "tokenizer.json").read_text()
    classifier = Classifier.from_config(run, found.weights, manifest.labels, tokenizer)
    columns = run.task_spec.shard_columns
    tables = list(shards.first_rows(prepared, manifest, "valid", columns, checkpoint_selection.MAX_ROWS))
    assert [table.num_rows for table in tables] == [16, 16, 8]
    rows = classifier.rows(tables)
    targets = rows.labels if rows.label_sets is None else rows.label_sets.matrix(len(manifest.labels))
    expected = calibration.temperature(classifier.logits(rows), targets)
    assert found.calibration.temperature == pytest.approx(expected, rel=1e-4)


def test_weights_of_an_average_have_the_buffers_of_the_model(tmp_path: Path) -> None:
    model = {"weight": torch.zeros(2), "rotary.inv_freq": torch.ones(3)}
    checkpoints.save(str(tmp_path), 1, {"valid_loss": 1.0}, {"model": model, "average": {"weight": torch.ones(2)}})
    (saved,) = checkpoints.committed(str(tmp_path))
    weights = checkpoint_selection._weights(saved)
    assert {name: weight.tolist() for name, weight in weights.items()} == {
        "weight": [1.0, 1.0],
        "rotary.inv_freq": [1.0, 1.0, 1.0],
    }

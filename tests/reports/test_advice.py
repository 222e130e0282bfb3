"""Advice about a run: each problem, and runs without it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.files import make_rows, write_csv
from tests.helpers.runs import trained
from txclf.artifacts import run_folder
from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.data import shards
from txclf.data.shards import Manifest
from txclf.reports import advice


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("advice")
    rows = [(f"{text} " * 30, label) for text, label in make_rows(80)] + [
        (f"a rare row {number}", "rare") for number in range(4)
    ]
    run, _ = trained(folder / "runs", write_csv(folder / "train.csv", rows), "name=mine", "tokenizer.max_length=8")
    return run


@pytest.fixture
def manifest(finished: RunConfig) -> Manifest:
    prepared = run_folder.read_run(finished.run_folder).prepared
    assert prepared
    return shards.load_manifest(prepared)


def validations(*losses: float, train_loss: float) -> list[dict[str, float]]:
    log: list[dict[str, float]] = [{"step": 1, "epoch": 0.1, "train_loss": train_loss}]
    return log + [{"step": n, "epoch": float(n), "valid_loss": loss} for n, loss in enumerate(losses, 1)]


def test_of_run_names_each_problem_of_its_files(finished: RunConfig) -> None:
    state = run_folder.read_run(finished.run_folder)
    found = advice.of_run(state, {"accuracy": 0.5, "baseline": {"accuracy": 0.75, "p_value": 0.001}})
    assert [sentence.partition(":")[0] for sentence in found] == [
        "The n-gram linear model is better",
        "Few rows",
        "Truncation",
    ]


def test_overfitting_needs_a_rising_validation_and_a_low_training_loss() -> None:
    run = RunConfig()
    found = advice.overfitting(run, validations(0.8, 0.4, 0.6, train_loss=0.01))
    assert found
    assert found.startswith("Overfitting: the validation loss rose from 0.400 at epoch 2 to 0.600, while the")
    assert "Raise `train.token_dropout` (now 0) or `model.dropout`" in found
    frozen = run_config.load(None, ["model={pretrained: some/encoder, freeze: encoder}"])
    found = advice.overfitting(frozen, validations(0.8, 0.4, 0.6, train_loss=0.01))
    assert found
    assert "Raise `train.label_smoothing` (now 0), or lower `train.epochs`, on" in found
    assert advice.overfitting(run, validations(0.8, 0.4, 0.41, train_loss=0.01)) is None
    calibrated = [{"valid_calibrated_loss": 0.4, **line} for line in validations(0.8, 0.4, 0.6, train_loss=0.01)]
    assert advice.overfitting(run, calibrated) is None
    assert advice.overfitting(run, validations(0.8, 0.4, 0.6, train_loss=0.3)) is None
    assert advice.overfitting(run, validations(0.4, train_loss=0.01)) is None


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["model.ngrams=false"], "`model.ngrams: auto`"),
        ([], "Fine-tune an encoder with `model.pretrained`"),
        (["model={pretrained: some/encoder}"], "`train.epochs`"),
    ],
)
def test_weaker_than_ngrams_names_the_key_of_the_run(overrides: list[str], key: str) -> None:
    tested: dict[str, Any] = {"accuracy": 0.5, "baseline": {"accuracy": 0.75, "p_value": 0.3}}
    found = advice.weaker_than_ngrams(run_config.load(None, overrides), tested)
    assert found
    assert "accuracy 0.7500 against 0.5000, which may be chance. " in found
    assert key in found


def test_weaker_than_ngrams_better_or_without_baseline_is_none() -> None:
    assert advice.weaker_than_ngrams(RunConfig(), {"f1_macro": 0.5, "baseline": {"f1_macro": 0.4}}) is None
    assert advice.weaker_than_ngrams(RunConfig(), {"f1_macro": 0.5}) is None
    assert advice.weaker_than_ngrams(RunConfig(), {"bleu": 5.0}) is None


def test_weaker_than_ngrams_compares_the_metric_that_ranks_checkpoints() -> None:
    run = run_config.load(None, ["train.monitor=valid_f1_macro"])
    linear = {"accuracy": 0.96, "f1_macro": 0.55, "p_value": 0.001, "f1_macro_p_value": 0.2}
    assert advice.weaker_than_ngrams(run, {"accuracy": 0.95, "f1_macro": 0.72, "baseline": linear}) is None
    found = advice.weaker_than_ngrams(run, {"accuracy": 0.97, "f1_macro": 0.5, "baseline": linear})
    assert found
    assert "macro F1 0.5500 against 0.5000, which may be chance. " in found


def test_few_rows_names_the_rarest_label(manifest: Manifest) -> None:
    rows = manifest.splits["train"].label_counts["rare"]
    assert advice.few_rows(RunConfig(), manifest) == (
        f"Few rows: `rare` has {rows} training row(s). Add rows of them, or set `train.class_weights: balanced`."
    )
    weighted = run_config.load(None, ["train.class_weights=balanced"])
    assert (advice.few_rows(weighted, manifest) or "").endswith("Add rows of them.")


def test_truncation_names_shares_and_key(manifest: Manifest) -> None:
    found = advice.truncation(RunConfig(), manifest)
    assert found
    assert found.startswith("Truncation: ")
    assert "Raise `tokenizer.max_length`, or set `data.truncation: windows`." in found
    split = manifest.splits["train"].model_copy(update={"truncated_rows": 0})
    short = manifest.model_copy(update={"splits": {"train": split}})
    assert advice.truncation(RunConfig(), short) is None

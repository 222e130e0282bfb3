"""Every command that reads a bundle, on a fine-tuned model of two text columns and any number of labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import txclf
from tests.helpers.encoders import write_encoder
from tests.helpers.multilabel import make, write_lines
from tests.helpers.serving import service_client
from txclf.artifacts import run_folder
from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.reports import inspect, report, run_report
from txclf.reports.error_analysis import QUICK

COLUMNS = ["title", "text"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a file of rows with two text columns."""
    rows = [{"title": f"about {row['text'].split()[0]}", **row} for row in make(240, 0)]
    return write_lines(tmp_path_factory.mktemp("rows") / "rows.jsonl", rows)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, rows: str) -> RunConfig:
    """Train a run and return it."""
    folder = tmp_path_factory.mktemp("runs")
    run = run_config.parse(
        {
            "name": "tuned",
            "task": "multilabel",
            "storage": str(folder),
            "data": {"train": rows, "test": rows, "text": COLUMNS, "label": "tags"},
            "tokenizer": {"max_length": 24},
            "model": {"pretrained": write_encoder(folder / "encoder")},
            "train": {"epochs": 2, "precision": "fp32"},
        }
    )
    txclf.train(run)
    return run


def test_evaluate_reports_the_calibration(run: RunConfig) -> None:
    found = txclf.evaluate(run.run_folder, baseline=False)
    summary = json.loads(Path(run.run_folder, "summary.json").read_text())
    assert found["temperature"] == pytest.approx(summary["calibration"]["temperature"])
    assert found["temperature"] != 1.0
    assert found["calibration_error_before"] != pytest.approx(found["calibration_error"], rel=1e-3)


def test_report_shows_the_uncalibrated_model_too(run: RunConfig) -> None:
    txclf.evaluate(run.run_folder, baseline=False)
    report.report([run.run_folder])
    split, *_ = run_report.gather(run_folder.read_run(run.run_folder), QUICK).label_splits
    assert split.uncalibrated is not None
    assert list(split.uncalibrated) != list(split.reliability)
    card = Path(run.run_folder, "model/README.md").read_text()
    assert "library_name: transformers" in card
    assert '{"text": "text 1", "text_pair": "text 2"}' in card


def test_predict_gives_the_answers_of_the_bundle(run: RunConfig, rows: str, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    txclf.predict(f"{run.run_folder}/model", [rows], out=out, probabilities=True)
    found = [json.loads(line) for line in out.read_text().splitlines()]
    classifier = txclf.Classifier.load(f"{run.run_folder}/model")
    probabilities = classifier.probabilities([(row["title"], row["text"]) for row in found])
    columns = [[row[f"probability_{label}"] for label in classifier.labels] for row in found]
    np.testing.assert_allclose(columns, probabilities, atol=1e-6)


def test_serve_answers_rows_and_explains_them(run: RunConfig) -> None:
    folder = f"{run.run_folder}/model"
    row = {"title": "about red", "text": "red green blue"}
    classifier = txclf.Classifier.load(folder)
    (expected,) = classifier.probabilities([(row["title"], row["text"])]).tolist()
    with service_client(folder) as client:
        answer = client.post("/predict", json={"rows": [row], "probabilities": True}).json()["predictions"][0]
        assert list(answer["probabilities"].values()) == pytest.approx(expected, abs=1e-6)
        assert set(client.post("/explain", json={"row": row}).json()["columns"]) == set(COLUMNS)


def test_inspect_lists_the_settings_of_a_pretrained_model(run: RunConfig) -> None:
    model = inspect.inspect(f"{run.run_folder}/model")["model"]
    assert (model["num_layers"], model["hidden_size"], model["freeze"], model["pooling"]) == (3, 32, "none", "cls")
    assert not model.keys() & {"position_encoding", "norm"}

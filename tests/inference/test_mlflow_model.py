"""The code that MLflow runs: one row of predictions for each row of texts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from tests.helpers.serving import untrained
from txclf import Classifier

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of mlflow, when it is imported


@pytest.fixture
def model(tiny_bundle: str) -> Any:
    """Load the tiny bundle as MLflow does."""
    return load(tiny_bundle, "classify")


def load(folder: str, task: str) -> Any:
    """Return the model of a bundle."""
    from txclf.inference.mlflow_model import BundleModel

    model = BundleModel()
    model.load_context(SimpleNamespace(artifacts={"bundle": folder}, model_config={"task": task}))
    return model


def test_predict_keeps_the_index_and_reads_missing_texts_as_empty(model: Any, tiny_bundle: str) -> None:
    table = model.predict(None, pd.DataFrame({"other": [1, 2], "text": ["fox", None]}, index=[7, 3]))
    assert list(table.index) == [7, 3]
    expected = Classifier.load(tiny_bundle)(["fox", ""])
    assert list(table["label"]) == [one.label for one in expected]
    assert list(table["probability"]) == pytest.approx([one.probability for one in expected])


def test_predict_no_rows_returns_no_rows(model: Any) -> None:
    table = model.predict(None, pd.DataFrame({"text": []}))
    assert (len(table), list(table)) == (0, ["label", "probability", "probabilities"])


def test_predict_seq2seq_returns_outputs(tmp_path: Path) -> None:
    model = load(untrained(tmp_path, task="seq2seq", data={"target": "target"}), "seq2seq")
    assert list(model.predict(None, pd.DataFrame({"text": ["fox", "dog"]}))) == ["output"]

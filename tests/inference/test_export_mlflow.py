"""MLflow models: MLflow loads them, and they give the answers of the bundle."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.command import environment
from tests.helpers.files import write_csv
from tests.helpers.fine_tuned import fine_tuned
from tests.helpers.serving import untrained
from txclf import Classifier, Seq2Seq
from txclf.inference.export import export

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of mlflow, when it is imported

TEXTS = ["the quick brown fox", "", "five boxing wizards jump", "dog " * 30]


def predicted(folder: str, rows: Sequence[tuple[str, ...]], columns: Sequence[str]) -> Any:
    """Return the predictions of an exported model, loaded by MLflow."""
    import mlflow.pyfunc
    import pandas as pd

    return mlflow.pyfunc.load_model(folder).predict(pd.DataFrame(rows, columns=columns))


@pytest.mark.parametrize("task", ["classify", "multilabel"])
def test_export_of_a_classifier_gives_its_predictions(tmp_path: Path, task: str) -> None:
    folder, out = untrained(tmp_path, task=task), f"{tmp_path}/out"
    (result,) = export(folder, out, formats=["mlflow"])
    assert (result.kept, result.rows, result.agreement, result.largest_difference) == (True, 1, 1.0, 0.0)
    assert "mlflow/artifacts/bundle/model.json" in result.files
    assert result.files[-1] == "mlflow/MLmodel"
    assert result.bytes == sum(Path(out, name).stat().st_size for name in result.files)
    assert json.loads(Path(out, "export.json").read_text())["formats"][0]["format"] == "mlflow"
    table = predicted(f"{out}/mlflow", [(text,) for text in TEXTS], ["text"])
    for found, expected in zip(table.to_dict(orient="records"), Classifier.load(folder)(TEXTS), strict=True):
        assert found["probabilities"] == pytest.approx(expected.probabilities)
        if task == "multilabel":
            assert found["labels"] == expected.labels
        else:
            assert (found["label"], found["probability"]) == (expected.label, pytest.approx(expected.probability))


def test_export_of_a_fine_tuned_model_reads_its_columns(tmp_path: Path) -> None:
    folder, out = fine_tuned(tmp_path, data={"text": ["title", "body"]}), f"{tmp_path}/out"
    rows = [(first, second) for first in TEXTS for second in TEXTS if first or second]
    data = write_csv(tmp_path / "rows.csv", rows, ("title", "body"))
    (result,) = export(folder, out, formats=["mlflow"], data=[data])
    assert (result.kept, result.rows) == (True, len(rows))
    table = predicted(f"{out}/mlflow", rows, ["title", "body"])
    probabilities = Classifier.load(folder).probabilities(rows)
    assert [list(row.values()) for row in table["probabilities"]] == [
        pytest.approx(row) for row in probabilities.tolist()
    ]


def test_export_of_seq2seq_generates_the_same_texts(tmp_path: Path) -> None:
    folder, out = untrained(tmp_path, task="seq2seq", data={"target": "target"}), f"{tmp_path}/out"
    (result,) = export(folder, out, formats=["mlflow"])
    assert result.kept
    rows = [(text,) for text in TEXTS]
    assert list(predicted(f"{out}/mlflow", rows, ["text"])["output"]) == Seq2Seq.load(folder).outputs(rows)


def test_export_has_signature_example_and_requirements(tmp_path: Path) -> None:
    export(fine_tuned(tmp_path), f"{tmp_path}/out", formats=["mlflow"])
    model = yaml.safe_load(Path(tmp_path, "out/mlflow/MLmodel").read_text())
    assert [column["name"] for column in json.loads(model["signature"]["inputs"])] == ["text"]
    assert [column["name"] for column in json.loads(model["signature"]["outputs"])] == [
        "label",
        "probability",
        "probabilities",
    ]
    assert model["flavors"]["python_function"]["loader_module"] == "mlflow.pyfunc.loaders.code_model"
    assert json.loads(Path(tmp_path, "out/mlflow/input_example.json").read_text())["data"] == [["some text"]]
    requirements = Path(tmp_path, "out/mlflow/requirements.txt").read_text().split()
    assert any(line.startswith("txclf[pretrained]==") for line in requirements)
    assert {line.partition("==")[0] for line in requirements} >= {"torch", "tokenizers", "transformers"}
    assert not [path for path in Path(tmp_path, "out").rglob("*") if path.suffix in (".pkl", ".pickle")]


def test_export_compares_on_the_device_of_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, devices = Classifier.load.__func__, list[Any]()  # type: ignore[attr-defined]

    def watched(cls: type[Classifier], folder: str, device: Any = None) -> Classifier:
        devices.append(device)
        return load(cls, folder, device)  # type: ignore[no-any-return]

    monkeypatch.setattr(Classifier, "load", classmethod(watched))
    folder, out = untrained(tmp_path), f"{tmp_path}/out"
    export(folder, out, formats=["mlflow"])
    assert devices[-1] == "cpu"
    predicted(f"{out}/mlflow", [("fox",)], ["text"])
    assert devices[-1] is None  # elsewhere it takes a GPU if there is one


def test_export_twice_replaces_the_folder(tmp_path: Path) -> None:
    folder, out = untrained(tmp_path), tmp_path / "out"
    export(folder, str(out), formats=["mlflow"])
    (out / "mlflow/old").write_text("")
    export(folder, str(out), formats=["mlflow"])
    assert not (out / "mlflow/old").exists()


def test_scoring_server_answers_with_the_predictions(tmp_path: Path) -> None:
    from mlflow.pyfunc import load_model, scoring_server
    from starlette.testclient import TestClient

    folder = untrained(tmp_path)
    export(folder, f"{tmp_path}/out", formats=["mlflow"])
    client = TestClient(scoring_server.init(load_model(f"{tmp_path}/out/mlflow")))
    answer = client.post("/invocations", json={"dataframe_split": {"columns": ["text"], "data": [["fox"], ["dog"]]}})
    assert answer.status_code == 200
    for found, expected in zip(answer.json()["predictions"], Classifier.load(folder)(["fox", "dog"]), strict=True):
        assert found["label"] == expected.label
        assert found["probabilities"] == pytest.approx(expected.probabilities)
    assert client.post("/invocations", json={"dataframe_split": {"columns": ["x"], "data": [["fox"]]}}).is_client_error


def test_export_without_mlflow_names_the_extra(tmp_path: Path) -> None:
    folder = untrained(tmp_path)
    code = f"""
import sys
sys.modules["mlflow"] = None
sys.argv = ["txclf", "export", {folder!r}, "--format", "mlflow"]
from txclf.cli.main import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: --format mlflow needs the package `mlflow`. Run `pip install 'txclf[mlflow]'`."
    )

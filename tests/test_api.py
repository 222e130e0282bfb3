"""The public face: lazy, keyword-only after two parameters, and each docstring's example runs."""

from __future__ import annotations

import inspect
import re
import signal
import subprocess
import sys
import textwrap
import urllib.request
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
import yaml

import txclf
from tests.helpers.files import make_rows, write_csv
from tests.helpers.waiting import PATIENCE_S
from txclf import Interrupted, Progress

FUNCTIONS = ("load_config", "prepare", "train", "tune", "evaluate", "predict", "export", "serve")
SETTINGS = {
    "data": {"train": "train.csv", "test": "test.csv"},
    "tokenizer": {"vocab_size": 300, "max_length": 16},
    "model": {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16},
    "train": {"epochs": 1, "batch_size": 16, "precision": "fp32"},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory with the files that the examples name."""
    rows = make_rows(200)
    write_csv(tmp_path / "train.csv", rows[:150])
    write_csv(tmp_path / "my.csv", rows[:150])
    write_csv(tmp_path / "test.csv", rows[150:])
    write_csv(tmp_path / "new.csv", [(text,) for text, _ in rows[:5]], header=["text"])
    (tmp_path / "run.yaml").write_text(yaml.dump({"name": "trec", **SETTINGS}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def example(name: str) -> str:
    """Return the indented code at the end of a docstring."""
    document = inspect.getdoc(getattr(txclf, name)) or ""
    return textwrap.dedent("\n".join(re.findall(r"^    .*$", document, flags=re.MULTILINE)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_takes_at_most_two_positional_parameters(name: str) -> None:
    kinds = [parameter.kind for parameter in inspect.signature(getattr(txclf, name)).parameters.values()]
    assert kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD) <= 2
    assert example(name)


def test_import_loads_nothing_heavy() -> None:
    code = "import sys, txclf; print(sorted(txclf.__all__) == sorted(dir(txclf)), *sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert loaded[0] == "True"
    assert not {"torch", "ray", "numpy", "pydantic", "pyarrow", "sklearn"} & set(loaded)


def test_every_public_name_is_importable() -> None:
    assert all(getattr(txclf, name) is not None for name in txclf.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = txclf.nothing


def test_examples_run_one_after_the_other(folder: Path) -> None:
    for name in ("load_config", "prepare", "train", "ray_result", "evaluate", "predict"):
        exec(example(name), {"txclf": txclf})
    assert (folder / "predictions.parquet").exists()
    assert (folder / "runs/trec/metrics.json").exists()


def test_export_example_runs(folder: Path) -> None:
    txclf.train("run.yaml")
    exec(example("export"), {"txclf": txclf})
    assert (folder / "runs/trec/model/export/model.onnx").exists()


@pytest.mark.usefixtures("local_ray")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_tune_example_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = {"train.learning_rate": {"loguniform": [1e-3, 1e-2]}}
    tune = {"trials": 2, "space": space, "scheduler": {"kind": "fifo"}}
    (folder / "search.yaml").write_text(yaml.dump({"name": "search", **SETTINGS, "tune": tune}))
    exec(example("tune"), {"txclf": txclf})
    assert "train.learning_rate" in capsys.readouterr().out
    assert txclf.Classifier.load(str(folder / "runs/search/model")).labels == ["neg", "pos"]


def test_serve_example_runs_until_a_signal(folder: Path) -> None:
    txclf.train("run.yaml")
    code = "import txclf\n" + example("serve").replace("port=8000", "port=0")
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-u", "-c", code], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        with urllib.request.urlopen(f"{url}/healthz", timeout=30) as answer:
            assert answer.status == 200
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=PATIENCE_S) == 0


def test_load_config_takes_a_path_a_mapping_and_a_run(folder: Path) -> None:
    run = txclf.load_config("run.yaml", ["train.epochs=2"])
    assert txclf.load_config(run) == run
    assert txclf.load_config({"name": "trec", **SETTINGS}, ["train.epochs=2"]) == run
    assert run.data.train == (str(folder / "train.csv"),)
    plain = txclf.load_config({"data": {"train": "train.csv"}})
    pairs = txclf.load_config(plain, ["task=seq2seq"])
    assert (pairs.train.monitor, pairs.tokenizer.lowercase) == ("valid_loss", False)
    with pytest.raises(txclf.ConfigError, match="Did you mean `epochs`"):
        txclf.load_config(run, ["train.epoch=2"])


def test_tables_in_memory_train_score_and_predict_as_their_files_do(folder: Path) -> None:
    frame, test = pd.read_csv("train.csv"), pd.read_csv("test.csv")
    settings = {key: value for key, value in SETTINGS.items() if key != "data"}
    of_files = txclf.train({"name": "files", **SETTINGS})
    of_tables = txclf.train({"name": "tables", **settings}, data=frame, test=test)
    assert of_tables.best == of_files.best
    prepared = list((folder / "runs/prepared").iterdir())
    assert txclf.train({"name": "tables", **settings}, data=frame, test=test, resume=True) == of_tables
    mapping = {"train": pa.Table.from_pandas(frame), "test": test}
    txclf.prepare(settings, data=mapping)
    assert list((folder / "runs/prepared").iterdir()) == prepared
    with pytest.raises(txclf.ConfigError, match=r"differs in `data\.train`"):
        txclf.train({"name": "tables", **settings}, data=frame[1:], test=test, resume=True)

    scores = txclf.evaluate("runs/tables", baseline=False)
    again = txclf.evaluate("runs/tables", test, baseline=False)
    assert again["accuracy"] == scores["accuracy"]
    assert again["data"] == [str(path) for path in (folder / "runs/tables/tables").iterdir()]
    txclf.predict("runs/tables/model", "test.csv", out="out.csv")
    found = txclf.predict("runs/tables/model", test)
    assert found["predicted_label"].tolist() == pd.read_csv("out.csv")["predicted_label"].tolist()


def test_tables_where_they_cannot_be_are_errors_that_say_what_to_do(folder: Path) -> None:
    frame = pd.read_csv("train.csv")
    for call, message in (
        (lambda: txclf.train(frame), "`DataFrame`: not a run. .*a table as `data=table`"),
        (lambda: txclf.load_config({"data": {"train": frame}}), r"`data.train`: expected paths, found a table"),
        (lambda: txclf.train(data=frame[["text"]]), "`data.train`: no column `label` among `text`"),
        (lambda: txclf.train(data=frame["text"]), "`data.train`: found `Series` of pandas"),
        (lambda: txclf.Classifier.load(frame), "`DataFrame`: not a path"),
        (lambda: txclf.evaluate(frame), "`DataFrame`: not a path"),
        (lambda: txclf.predict("model", frame, out="out.csv"), "predicted in this process and returned. Remove `out`"),
        (lambda: txclf.predict("model", "new.csv"), "`out`: not set"),
    ):
        with pytest.raises(txclf.TxclfError, match=message):
            call()
    assert not (folder / "runs").exists()


def test_single_strings_count_as_lists_and_impossible_workers_are_a_config_error(folder: Path) -> None:
    run = txclf.load_config("run.yaml", "train.epochs=1")
    txclf.train(run)
    assert txclf.predict(f"{run.run_folder}/model", "new.csv", out="one.csv").rows == 5
    assert txclf.evaluate(run.run_folder, "my.csv", baseline=False)["rows"] == 150
    (exported,) = txclf.export(f"{run.run_folder}/model", formats="onnx", data=Path("my.csv"), rows=20)
    assert exported.kept
    with pytest.raises(txclf.ConfigError, match="`data`: found"):
        txclf.export(f"{run.run_folder}/model", data=pa.table({"text": ["a"]}))
    with pytest.raises(txclf.ConfigError, match=r"compute\.workers"):
        txclf.predict(f"{run.run_folder}/model", ["new.csv"], out="two.csv", workers=-1)


def test_train_refuses_a_taken_folder_and_resumes_an_interrupted_run(folder: Path) -> None:
    def stop(progress: Progress) -> bool:
        return progress.step >= 1

    with pytest.raises(Interrupted):
        txclf.train("run.yaml", ["train.epochs=30"], on_progress=stop)
    with pytest.raises(txclf.ConfigError, match="--resume"):
        txclf.train("run.yaml", ["train.epochs=30"])
    summary = txclf.train("run.yaml", ["train.epochs=30"], resume=True)
    assert summary.attempts == 2
    assert txclf.train("run.yaml", ["train.epochs=30"], resume=True) == summary

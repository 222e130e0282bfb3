"""Trackers: MLflow with a real store in a file, and Weights & Biases offline if it is installed."""

from __future__ import annotations

import importlib
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.files import make_rows, write_csv
from tests.helpers.runs import go_on, lines, stopped_at, tiny, trained
from txclf.artifacts import trackers
from txclf.config import run_config
from txclf.core.errors import ConfigError, TxclfError
from txclf.data.prepare import prepare
from txclf.training import callbacks
from txclf.training.progress import Progress
from txclf.training.train import check_folder, train

# MLflow and its dependencies warn, txclf does not.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_csv(tmp_path_factory.mktemp("data") / "train.csv", make_rows(300))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of an empty MLflow store."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/store.db"


@pytest.fixture
def client(store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Client of a real MLflow store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    levels = {name: logging.getLogger(name).level for name in ("alembic", "mlflow")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    yield importlib.import_module("mlflow").MlflowClient(store)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def tracked(client: Any, name: str) -> list[Any]:
    (experiment,) = [experiment for experiment in client.search_experiments() if experiment.name == "txclf"]
    return [run for run in client.search_runs([experiment.experiment_id]) if run.info.run_name == name]


def curve(client: Any, run: Any, metric: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric)]


def test_mlflow_receives_the_log_and_the_run_file(tmp_path: Path, data: str, client: Any) -> None:
    run, summary = trained(tmp_path, data, "name=whole", "train.trackers=[mlflow]", "train.log_every_steps=5")
    (tracked_run,) = tracked(client, "whole")
    assert tracked_run.info.status == "FINISHED"
    for metric in ("train_loss", "learning_rate", "valid_loss", "valid_accuracy", "valid_f1_macro", "epoch"):
        expected = [(line["step"], line[metric]) for line in lines(run) if metric in line]
        assert sorted(curve(client, tracked_run, metric)) == sorted(expected)
    assert tracked_run.data.metrics["valid_loss"] == lines(run)[-1]["valid_loss"]
    assert tracked_run.data.params["train.batch_size"] == "16"
    assert tracked_run.data.params["data.train"] == str([data])
    assert tracked_run.data.params == {name: text[:6000] for name, text in trackers.parameters(run).items()}
    assert tracked_run.data.tags["txclf.folder"] == run.run_folder
    assert json.loads(Path(run.run_folder, "trackers.json").read_text()) == {"mlflow": tracked_run.info.run_id}
    assert summary.steps == lines(run)[-1]["step"]


def test_mlflow_resumed_run_continues_its_mlflow_run(tmp_path: Path, data: str, client: Any) -> None:
    overrides = ["name=stopped", "train.trackers=[mlflow]"]
    run = tiny(tmp_path, data, *overrides)
    stopped_at(run, 7)
    (tracked_run,) = tracked(client, "stopped")
    assert tracked_run.info.status == "KILLED"
    before = curve(client, tracked_run, "train_loss")
    assert 7 <= before[-1][0] < 20
    # Parameters that may change on resume are not sent again, because MLflow refuses changed ones.
    again = tiny(tmp_path, data, *overrides, "train.checkpoint_every=5")
    check_folder(again, resume=True)
    train(again, prepare(again), go_on)
    (tracked_run,) = tracked(client, "stopped")
    assert tracked_run.info.status == "FINISHED"
    after = curve(client, tracked_run, "train_loss")
    assert after[: len(before)] == before
    assert [step for step, _ in after] == [line["step"] for line in lines(again) if "train_loss" in line]


def test_mlflow_failed_run_is_marked_as_failed(tmp_path: Path, data: str, client: Any) -> None:
    run = tiny(
        tmp_path, data, "name=failed", "train.trackers=[mlflow]", "train.learning_rate=1e30", "train.max_grad_norm=0"
    )
    with pytest.raises(TxclfError, match="not finite"):
        train(run, prepare(run), go_on)
    (tracked_run,) = tracked(client, "failed")
    assert tracked_run.info.status == "FAILED"


def test_tracker_group_failing_tracker_is_dropped_and_the_run_continues(
    tmp_path: Path, data: str, client: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "REPORT_INTERVAL_S", 0.0)
    run = tiny(tmp_path, data, "name=deleted", "train.trackers=[mlflow]")

    def delete(progress: Progress) -> bool:
        if progress.step == 5:
            client.delete_run(json.loads(Path(run.run_folder, "trackers.json").read_text())["mlflow"])
        return False

    summary = train(run, prepare(run), delete)
    assert lines(run)[-1]["step"] == summary.steps
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "txclf"]
    assert warning.startswith("mlflow failed and is not used for the rest of this run: ")
    assert "active" in warning


def test_open_trackers_unusable_store_raises_before_the_first_step(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    run = tiny(tmp_path, data, "train.trackers=[mlflow]")
    with pytest.raises(ConfigError, match=r"`train\.trackers`: `mlflow` cannot be used: "):
        train(run, prepare(run), go_on)
    assert not Path(run.run_folder, "metrics.jsonl").exists()


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_require_missing_package_raises(tmp_path: Path, data: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny(tmp_path, data, f"train.trackers=[{name}]")
    prepared = prepare(run)
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [])
    message = rf"`train.trackers`: `{name}` is not installed\. Run `pip install 'txclf\[{name}\]'`"
    with pytest.raises(ConfigError, match=message):
        check_folder(run, resume=False)
    with pytest.raises(ConfigError, match=message):
        train(run, prepared, go_on)
    assert not Path(run.run_folder).exists()


def test_require_ray_workers_need_a_tracking_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_config.load(None, ["train.trackers=[mlflow]", "compute.workers=2"])
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match=r"needs one server for all workers\. Set MLFLOW_TRACKING_URI"):
        trackers.require(run)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there")
    trackers.require(run)


def test_parameters_are_the_run_file_by_dotted_key() -> None:
    run = run_config.load(None, ["train.class_weights={a: 2}", "data.text=[title, body]"])
    parameters = trackers.parameters(run)
    assert parameters["name"] == "run"
    assert parameters["train.class_weights.a"] == "2.0"
    assert parameters["data.text"] == "['title', 'body']"
    assert parameters["data.valid"] == "None"
    assert not any(name.startswith("tune") for name in parameters)
    settings = run.model_dump(exclude={"tune"})
    sections = [value for value in settings.values() if isinstance(value, dict)]
    assert len(parameters) == len(settings) - len(sections) + sum(map(len, sections))


def test_wandb_offline_receives_the_log_and_the_run_file(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_ERROR_REPORTING": "false"}.items():
        monkeypatch.setenv(name, value)
    overrides = ["train.trackers=[wandb]"]
    stopped_at(tiny(tmp_path, data, *overrides), 7)
    again = tiny(tmp_path, data, *overrides)
    name = json.loads(Path(again.run_folder, "trackers.json").read_text())["wandb"]
    train(again, prepare(again), go_on)
    assert json.loads(Path(again.run_folder, "trackers.json").read_text())["wandb"] == name
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert [file.stem for file in files] == [f"run-{name}"] * 2
    content = b"".join(file.read_bytes() for file in files)
    for part in (b"train.batch_size", b"valid_f1_macro", repr(lines(again)[-1]["valid_loss"]).encode()):
        assert part in content

"""Commands that make a model: config, prepare, train, evaluate."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.helpers.command import TXCLF, environment, txclf
from tests.helpers.runs import TINY
from tests.helpers.waiting import PATIENCE_S
from txclf.cli.main import app
from txclf.core.errors import ConfigError

ROOT = Path(__file__).parents[2]
SMALL = [
    "tokenizer.vocab_size=300",
    "tokenizer.min_frequency=1",
    "model.hidden_size=16",
    "model.num_heads=2",
    "model.num_layers=1",
]


def invoke(*arguments: str) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, arguments)


def test_config_prints_every_key_of_the_resolved_run() -> None:
    jobs = str(ROOT / "jobs/tiny.yaml")
    assert "epochs: 7\n" in invoke("config", jobs, "train.epochs=7").stdout
    assert "epochs: 8\n" in invoke("config", "train.epochs=8").stdout


def test_config_schema_prints_json() -> None:
    assert json.loads(invoke("config", "--schema").stdout)["properties"]["train"]


def test_config_unknown_key_names_the_nearest() -> None:
    done = invoke("config", "train.epoch=3")
    assert isinstance(done.exception, ConfigError)
    assert "`train.epoch`: unknown key. Did you mean `epochs`?" in str(done.exception)


def test_prepare_prints_the_splits(tmp_path: Path, folder: Path) -> None:
    done = invoke("prepare", str(ROOT / "jobs/tiny.yaml"), f"storage={tmp_path}", f"data.train={folder}/train.csv")
    assert done.exit_code == 0, done.output
    assert f"prepared data: {tmp_path}/prepared/" in done.stdout
    assert "2 labels" in done.stdout
    assert "duplicates" in done.stdout


def test_distill_trains_on_the_answers_of_a_bundle(tmp_path: Path, folder: Path) -> None:
    arguments = [str(ROOT / "jobs/tiny.yaml"), f"storage={tmp_path}", f"data.train={folder}/train.csv", *TINY]
    arguments += [f"data.test={folder}/test.csv", "train.epochs=1"]
    assert invoke("train", *arguments, "name=large").exit_code == 0
    words = ["name=small", f"data.unlabelled={folder}/test.csv", "distill.weight=0.5"]
    done = invoke("distill", str(tmp_path / "large" / "model"), *arguments, *words)
    assert done.exit_code == 0, done.output
    assert "unlabelled" in done.stdout
    assert (tmp_path / "small" / "model" / "model.json").exists()
    assert f"teacher: {tmp_path}/large/model" in (tmp_path / "small" / "run.yaml").read_text()
    assert f"{tmp_path}/large/model" in (tmp_path / "small" / "report.html").read_text()


def test_train_and_evaluate_print_summary_and_scores(tmp_path: Path, folder: Path) -> None:
    arguments = ["train", str(ROOT / "jobs/tiny.yaml"), f"storage={tmp_path}", f"data.train={folder}/train.csv"]
    arguments += [*TINY, f"data.test={folder}/test.csv"]
    done = invoke(*arguments)
    assert done.exit_code == 0, done.output
    assert f"run folder: {tmp_path}/tiny\nmodel:      {tmp_path}/tiny/model\n" in done.stdout
    assert f"report:     {tmp_path}/tiny/report.html\n" in done.stdout
    assert isinstance(invoke(*arguments).exception, ConfigError)
    again = invoke(*arguments, "--resume")
    assert again.exit_code == 0
    assert again.stdout.startswith(f"`{tmp_path}/tiny` is already finished\n")
    scored = invoke("evaluate", f"{tmp_path}/tiny", "--no-baseline")
    assert "Scores on 100 rows" in scored.stdout
    assert f"all scores: {tmp_path}/tiny/metrics.json\n" in scored.stdout
    refused = invoke("evaluate", f"{tmp_path}/tiny", "--cpus-per-worker", "2")
    assert str(refused.exception).startswith("--cpus-per-worker: needs Ray workers. Pass --workers")
    on_ray = txclf(tmp_path, "evaluate", f"{tmp_path}/tiny", "--no-baseline", "--workers", "1")
    assert on_ray.returncode == 0, on_ray.stderr
    assert "Scores on 100 rows" in on_ray.stdout


@pytest.mark.parametrize(
    ("number", "workers"),
    [
        pytest.param(signal.SIGINT, 0, marks=pytest.mark.faults),
        (signal.SIGTERM, 0),
        pytest.param(signal.SIGTERM, 2, marks=pytest.mark.faults),
    ],
)
def test_train_on_a_signal_saves_a_checkpoint_and_resumes(
    folder: Path, tmp_path: Path, number: signal.Signals, workers: int
) -> None:
    overrides = [str(ROOT / "jobs/tiny.yaml"), f"storage={tmp_path}", f"data.train={folder}/train.csv", *SMALL]
    overrides += [
        "train.epochs=25",
        "train.early_stopping_patience=0",
        f"compute.workers={workers}",
        "compute.cpus_per_worker=0.5",
    ]
    log = tmp_path / "tiny/metrics.jsonl"
    process = subprocess.Popen(
        [TXCLF, "train", *overrides],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    deadline = time.monotonic() + 200
    while not (log.exists() and len(log.read_text().splitlines()) > 8):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)
    process.send_signal(number)
    _, error = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + number, error
    assert "Pass --resume to continue" in error
    assert "Traceback" not in error
    assert not (tmp_path / "tiny/summary.json").exists()
    again = txclf(folder, "train", *overrides)
    assert again.returncode == 2
    assert "--resume" in again.stderr
    assert txclf(folder, "train", *overrides, "--resume").returncode == 0
    steps = [line["step"] for line in map(json.loads, log.read_text().splitlines()) if "train_loss" in line]
    assert steps == sorted(set(steps))
    assert json.loads((tmp_path / "tiny/summary.json").read_text())["steps"] == steps[-1]


def test_json_of_each_command_is_one_object_on_standard_output(tmp_path: Path, folder: Path) -> None:
    shared = [str(ROOT / "jobs/tiny.yaml"), f"storage={tmp_path}", f"data.train={folder}/train.csv", *TINY]
    shared += [f"data.test={folder}/test.csv", "train.epochs=1"]

    def result(*arguments: str) -> dict[str, Any]:
        done = invoke(*arguments, "--json", "--quiet")
        assert done.exit_code == 0, done.output
        assert done.stderr == ""
        value: dict[str, Any] = json.loads(done.stdout)
        return value

    run = f"{tmp_path}/tiny"
    assert result("config", *shared)["train"]["epochs"] == 1
    assert result("prepare", *shared)["kind"] == "prepared"
    assert result("check", *shared)["passed"] is True
    trained = result("train", *shared)
    assert (trained["run_folder"], trained["model"]) == (run, f"{run}/model")
    assert trained["best"]["valid_loss"] > 0
    assert result("train", *shared, "--resume") == trained
    assert result("evaluate", run)["accuracy"] >= 0
    assert result("drift", run, f"{folder}/test.csv")["rows"] > 0
    assert result("report", run) == {"report": f"{run}/report.html"}
    assert result("inspect", run)["state"] == "finished"
    exported = result("export", f"{run}/model", "--format", "torch", "--rows", "4")
    assert [one["format"] for one in exported["exports"]] == ["torch"]


def test_train_without_a_name_is_numbered_and_resumed(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "mine.yaml").write_text("data: {label: label}\n")
    shared = ["train", f"{tmp_path}/mine.yaml", f"storage={tmp_path}/runs", f"data.train={folder}/train.csv", *TINY]
    refused = invoke(*shared, "data.label=lable")
    assert "Did you mean `label`?" in str(refused.exception)
    first = invoke(*shared, "train.epochs=1")
    assert first.exit_code == 0, first.output
    assert first.stderr.startswith(f"run `mine-1` into `{tmp_path}/runs/mine-1`\n")
    assert f"next: txclf evaluate {tmp_path}/runs/mine-1 --data FILE\n" in first.stdout
    longer = invoke(*shared, "train.epochs=2", "--resume", "--json")
    assert longer.exit_code == 0, longer.output
    assert (json.loads(longer.stdout)["name"], json.loads(longer.stdout)["epochs"]) == ("mine-1", 2.0)

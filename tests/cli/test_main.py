"""The command line as a user runs it: real processes, exit codes, signals; the README's own commands."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.command import TXCLF, environment, txclf
from tests.helpers.files import make_rows, write_csv

ROOT = Path(__file__).parents[2]
SMALL = [
    "tokenizer.vocab_size=300",
    "tokenizer.min_frequency=1",
    "model.hidden_size=16",
    "model.num_heads=2",
    "model.num_layers=1",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with labelled files."""
    folder = tmp_path_factory.mktemp("work")
    rows = [(f"{text} {'good' if label == 'pos' else 'bad'}", label) for text, label in make_rows(400)]
    write_csv(folder / "train.csv", rows[:300])
    write_csv(folder / "test.csv", rows[300:])
    write_csv(folder / "new.csv", [(text,) for text, _ in make_rows(20, seed=5)], header=["text"])
    return folder


def test_version_and_help(folder: Path) -> None:
    assert re.fullmatch(r"txclf \d+\.\d+\.\d+\n", txclf(folder, "--version").stdout)
    shown = txclf(folder, "--help").stdout
    assert all(verb in shown for verb in ("demo", "prepare", "train", "evaluate", "predict", "config"))


def test_config_prints_it_resolved_and_its_schema(folder: Path) -> None:
    jobs = str(ROOT / "jobs/tiny.yaml")
    assert "epochs: 7\n" in txclf(folder, "config", jobs, "train.epochs=7").stdout
    assert "epochs: 8\n" in txclf(folder, "config", "train.epochs=8").stdout
    assert json.loads(txclf(folder, "config", "--schema").stdout)["properties"]["train"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "nothing.yaml"], "`nothing.yaml`: no such run file"),
        (["train", "{tiny}", "train.epoch=3"], "`train.epoch`: unknown key. Did you mean `epochs`?"),
        (["train", "{tiny}", "train.epochs=many"], "`train.epochs`: "),
        (["train", "{tiny}", "tokenizer.max_length=0"], "`tokenizer.max_length`: "),
        (["train", "{tiny}", "data.train=none.csv"], "none.csv`: no such file"),
        (["train", "{tiny}", "data.label=nope"], "no column `nope` among `text`, `label`"),
        (["train", "{tiny}", "train.batch_size=9999"], "larger than the training split"),
        (["train", "{tiny}", "storage=train.csv"], "cannot be written"),
        (["train", "{tiny}", "name=new", "--resume"], "no run to resume"),
        (["train", "{tiny}", "name=ray", "compute.workers=16", "compute.cpus_per_worker=50"], "800 CPUs, but Ray has"),
        (["evaluate", "nowhere"], "not a finished run"),
        (["predict", "nowhere", "new.csv", "--out", "out.csv"], "not a model bundle"),
    ],
)
def test_what_a_user_can_mend_is_one_message_and_exit_code_2(folder: Path, words: list[str], message: str) -> None:
    done = txclf(folder, *(word.format(tiny=ROOT / "jobs/tiny.yaml") for word in words))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert not (folder / "out.csv").exists()


def readme_commands() -> list[str]:
    """The README's shell lines, but for `make`, which set this environment up."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    return [line for line in "".join(blocks).splitlines() if not line.startswith("make")]


def test_the_commands_of_the_readme_run_in_their_order(folder: Path, tmp_path: Path) -> None:
    for file in folder.glob("*.csv"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "jobs").symlink_to(Path(__file__).parents[2] / "jobs")
    commands = readme_commands()
    assert sum("txclf train" in command for command in commands) >= 3
    for command in commands:
        done = subprocess.run(
            command,
            shell=True,
            cwd=tmp_path,
            timeout=240,
            check=False,
            capture_output=True,
            text=True,
            env=environment(),
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    with open(tmp_path / "predictions.csv", newline="") as rows:
        assert len(list(csv.DictReader(rows))) == 20


def test_the_demo_shows_scores_beside_the_baselines_and_says_what_next(tmp_path: Path) -> None:
    done = txclf(tmp_path, "demo")
    assert done.returncode == 0, done.stderr
    for text in ("n-gram logistic regression", "majority class", "macro F1", "Five test rows", "Try next"):
        assert text in done.stdout
    metrics = json.loads((tmp_path / "runs/demo/run/metrics.json").read_text())
    assert metrics["accuracy"] > metrics["majority"]["accuracy"] + 0.2
    assert metrics["rows"] == sum(score["support"] for score in metrics["per_class"].values()) > 300
    assert 0.3 < metrics["baseline"]["accuracy"] < 1.0
    following = re.findall(r"^  txclf (predict .*)$", done.stdout, flags=re.MULTILINE)
    assert txclf(tmp_path, *following[0].split()).returncode == 0
    with open(tmp_path / "predictions.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == metrics["rows"]


@pytest.mark.parametrize(
    ("number", "workers"),
    [
        pytest.param(signal.SIGINT, 0, marks=pytest.mark.faults),
        (signal.SIGTERM, 0),
        pytest.param(signal.SIGTERM, 2, marks=pytest.mark.faults),
    ],
)
def test_a_signal_saves_a_checkpoint_and_resume_goes_on(
    folder: Path, tmp_path: Path, number: signal.Signals, workers: int
) -> None:
    words = [str(ROOT / "jobs/tiny.yaml"), f"storage={tmp_path}", f"data.train={folder}/train.csv", *SMALL]
    words += [
        "train.epochs=60",
        "train.early_stopping_patience=0",
        f"compute.workers={workers}",
        "compute.cpus_per_worker=0.5",
    ]
    log = tmp_path / "tiny/metrics.jsonl"
    process = subprocess.Popen(
        [TXCLF, "train", *words],
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
    _, error = process.communicate(timeout=120)
    assert process.returncode == 128 + number, error
    assert "Pass --resume to continue" in error
    assert "Traceback" not in error
    assert not (tmp_path / "tiny/summary.json").exists()
    again = txclf(folder, "train", *words)
    assert again.returncode == 2
    assert "--resume" in again.stderr
    assert txclf(folder, "train", *words, "--resume").returncode == 0
    steps = [line["step"] for line in map(json.loads, log.read_text().splitlines()) if "train_loss" in line]
    assert steps == sorted(set(steps))
    assert json.loads((tmp_path / "tiny/summary.json").read_text())["steps"] == steps[-1]

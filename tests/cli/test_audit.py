"""The command `audit`: its summary in 80 columns, its JSON, and the command that it suggests."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.helpers.files import write_csv
from tests.helpers.runs import tiny
from tests.helpers.topics import make
from txclf.cli.main import app
from txclf.config import run_config
from txclf.config.run_config import RunConfig
from txclf.data.prepare import prepare
from txclf.training.fitting import begin
from txclf.training.job import WorkerConfig

NAMES = ["\x1b[31ma label with a long name", "money", "life"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("audit")
    texts, labels = make(150)
    labels[::15] = (labels[::15] + 1) % 3
    rows = [(f"{text} {number}", NAMES[label]) for number, (text, label) in enumerate(zip(texts, labels, strict=True))]
    run = tiny(folder / "runs", write_csv(folder / "a file with a long name.csv", rows), "name=one")
    begin(WorkerConfig(run, prepare(run)))
    return run


def test_audit_prints_a_summary_and_the_command_that_follows(
    run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(run.storage).parent)
    done = CliRunner().invoke(app, ["audit", "runs/one", "--folds", "2"])
    assert done.exit_code == 0, done.output
    assert " of 150 labels are doubtful (" in done.stdout
    assert "\x1b" not in done.stdout
    assert "page: runs/one/audit/audit.html" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if not line.startswith("next: ")), done.stdout
    command = shlex.split(done.stdout.splitlines()[-1].removeprefix("next: "))
    assert command[:2] == ["txclf", "train"]
    corrected = run_config.load(command[2], command[3:])
    assert corrected.name == "one-corrected"
    assert corrected.data.corrections == (f"{run.run_folder}/audit/suspects.csv",)


def test_audit_json_names_the_files(run: RunConfig, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["audit", run.run_folder, "--folds", "2", "--out", str(tmp_path), "--json"])
    found = json.loads(done.stdout)
    assert found["suspects_file"] == f"{tmp_path}/suspects.csv"
    assert Path(found["rows_file"]).exists()
    assert len(found["most_doubtful"]) == min(10, found["suspects"]) > 0

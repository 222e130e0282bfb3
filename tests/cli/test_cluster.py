"""Commands for a Ray cluster, as far as they need none. `tests/launch/test_jobs.py` runs them on Ray."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from txclf.cli.main import app
from txclf.core.errors import ConfigError

ROOT = Path(__file__).parents[2]


def test_check_without_ray_prints_one_line_per_finding(tmp_path: Path, folder: Path) -> None:
    arguments = [str(ROOT / "jobs/tiny.yaml"), f"storage={tmp_path}", f"data.train={folder}/train.csv"]
    done = CliRunner().invoke(app, ["check", *arguments])
    assert done.exit_code == 0, done.output
    *findings, advice = done.stdout.splitlines()
    assert all(line.startswith(("pass  ", "warn  ")) for line in findings)
    assert advice.startswith("next: txclf train ")
    assert "pass  storage: " in done.stdout


def test_check_with_missing_data_exits_with_1_or_names_the_file(tmp_path: Path) -> None:
    arguments = [str(ROOT / "jobs/tiny.yaml"), f"storage={tmp_path}", "data.train=none.csv"]
    done = CliRunner().invoke(app, ["check", *arguments])
    assert done.exit_code == 1
    assert "none.csv" in done.stdout + str(done.exception)


def test_submit_unknown_command_is_refused() -> None:
    done = CliRunner().invoke(app, ["submit", "--address", "http://127.0.0.1:9", "demo", "run.yaml"])
    assert isinstance(done.exception, ConfigError)
    assert "`demo`: expected one of train, distill, tune, prepare" in str(done.exception)


@pytest.mark.parametrize("command", ["list", "status", "logs", "stop"])
def test_jobs_without_an_address_exits_with_2(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    done = CliRunner().invoke(app, ["jobs", command, *(["raysubmit_1"] if command != "list" else [])])
    assert done.exit_code == 2
    assert "Missing option" in done.output
    assert "--address" in done.output

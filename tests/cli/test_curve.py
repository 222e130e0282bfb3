"""The command `curve`: its table in 80 columns, its JSON, and the step that follows."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.helpers.files import make_rows, write_csv
from tests.helpers.reports import ReportPage
from tests.helpers.runs import trained
from txclf.cli.main import app
from txclf.config.run_config import RunConfig
from txclf.training.train import RunSummary, train


def test_curve_prints_a_table_and_a_forecast(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "train.csv", make_rows(200))
    run, _ = trained(tmp_path / "runs", data, "name=one", "train.epochs=1")
    done = CliRunner().invoke(app, ["curve", run.run_folder, "--points", "2"])
    assert done.exit_code == 0, done.output
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if run.run_folder not in line), done.stdout
    assert "Learning curve, " in done.stdout
    assert "2 x the rows (3" in done.stdout
    page = ReportPage(f"{run.run_folder}/curve/curve.html")
    assert f"page: {run.run_folder}/curve/curve.html" in done.stdout
    assert "2 times the rows" in page.text
    assert page.content["kind"] == "learning_curve"
    assert done.stdout.splitlines()[-1].startswith(f"next: txclf audit {run.run_folder}")
    again = CliRunner().invoke(app, ["curve", run.run_folder, "--points", "2", "--json"])
    assert json.loads(again.stdout) == json.loads(Path(run.run_folder, "curve/curve.json").read_text())


def test_curve_signal_while_a_part_is_bundled_begins_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_csv(tmp_path / "train.csv", make_rows(200))
    run, _ = trained(tmp_path / "runs", data, "name=one", "train.epochs=1")
    begun: list[str] = []

    def train_and_stop(part: RunConfig, *arguments: Any) -> RunSummary:
        begun.append(part.name)
        summary = train(part, *arguments)
        signal.raise_signal(signal.SIGTERM)  # after its last look at the signals
        return summary

    monkeypatch.setattr("txclf.training.train.train", train_and_stop)
    done = CliRunner().invoke(app, ["curve", run.run_folder, "--points", "2"])
    assert (done.exit_code, len(begun)) == (143, 1)

"""The export command."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from txclf.cli.main import app
from txclf.core.errors import ConfigError


@pytest.fixture
def rows(tmp_path: Path) -> str:
    """Return a file with test rows."""
    path = tmp_path / "rows.csv"
    path.write_text("text\n" + "the quick brown fox\nfive lazy dogs\n" * 4)
    return str(path)


def test_export_prints_a_row_per_format_and_the_folder(tiny_bundle: str, tmp_path: Path, rows: str) -> None:
    out = f"{tmp_path}/out"
    done = CliRunner().invoke(app, ["export", tiny_bundle, "--out", out, "--format", "torch", "--data", rows])
    assert done.exit_code == 0, done.output
    assert "8 rows by each file and by the bundle" in done.stdout
    assert " torch " in done.stdout
    assert " onnx " not in done.stdout
    assert f"in `{out}`, described by export.json\n" in done.stdout
    assert f"next: python -m json.tool {out}/export.json" in done.stdout


@pytest.mark.parametrize("name", ["onxx", "ONNX", ""])
def test_export_unknown_format_lists_the_known_ones(tiny_bundle: str, name: str) -> None:
    done = CliRunner().invoke(app, ["export", tiny_bundle, "--format", name])
    assert isinstance(done.exception, ConfigError)
    assert f"--format {name}: unknown format. Pass one of onnx, torch, int8, mlflow." in str(done.exception)


def test_export_share_above_one_exits_with_2(tiny_bundle: str) -> None:
    done = CliRunner().invoke(app, ["export", tiny_bundle, "--min-agreement", "1.5"])
    assert done.exit_code == 2
    assert "--min-agreement" in done.output

"""The command that writes a first run file: init."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import txclf
from tests.helpers.files import make_rows
from txclf.cli.main import app
from txclf.core.errors import ConfigError, DataError


def test_init_messy_file_is_ready_to_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [f"{text} schön;{label}" for text, label in make_rows(250)]
    lines[7:7] = ["zu;viele;Felder", "ohne Label;"]
    Path("mails.csv").write_bytes("\n".join(["Nachricht;Art", *lines]).encode("latin-1"))
    done = CliRunner().invoke(app, ["init", "mails.csv"])
    assert done.exit_code == 0, done.output
    assert "run file: run.yaml\nnext: txclf train run.yaml\n" in done.stdout
    assert "latin-1" in done.stdout
    small = ["train.epochs=1", "model.num_layers=1", "model.hidden_size=16", "model.num_heads=2"]
    txclf.train("run.yaml", [*small, "tokenizer.vocab_size=300", "train.precision=fp32"])
    scores = txclf.evaluate("runs/mails", baseline=False)
    assert (scores["data"], scores["rows"] > 20) == ("test", True)


def test_init_never_replaces_a_file(tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    out.write_text("name: mine\n")
    done = CliRunner().invoke(app, ["init", f"{tmp_path}/none.csv", "--out", str(out)])
    assert isinstance(done.exception, ConfigError)
    assert str(done.exception) == f"`{out}`: exists already. Pass another --out, or remove the file."
    assert out.read_text() == "name: mine\n"


def test_init_refused_files_leave_no_run_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,x\nb,x\n")
    done = CliRunner().invoke(app, ["init", f"{tmp_path}/a.csv", "--out", f"{tmp_path}/run.yaml"])
    assert isinstance(done.exception, DataError)
    assert not (tmp_path / "run.yaml").exists()

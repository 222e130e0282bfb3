"""The `txclf` command as a process: version, help, errors, and the commands of the README."""

from __future__ import annotations

import csv
import gc
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.helpers.command import TXCLF, environment, txclf
from txclf.cli.main import app, main

ROOT = Path(__file__).parents[2]


def test_main_version_and_help_are_printed(folder: Path) -> None:
    assert re.fullmatch(r"txclf \d+\.\d+\.\d+\n", txclf(folder, "--version").stdout)
    shown = txclf(folder, "--help").stdout
    assert all(
        command in shown
        for command in ("demo", "prepare", "train", "evaluate", "predict", "config", "--show-completion")
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
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
        (["evaluate", "nowhere"], "not a finished run"),
        (["predict", "nowhere", "new.csv", "--out", "out.csv"], "not a model bundle"),
    ],
)
def test_main_user_error_is_one_message_and_exit_code_2(
    folder: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    words = [argument.format(tiny=ROOT / "jobs/tiny.yaml") for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["txclf", *words])
    monkeypatch.setattr(gc, "set_threshold", lambda *thresholds: None)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err + shown.out
    assert not (folder / "out.csv").exists()


def test_main_user_error_of_the_command_has_exit_code_2(folder: Path) -> None:
    run = [str(ROOT / "jobs/tiny.yaml"), "name=ray", "compute.workers=16", "compute.cpus_per_worker=50"]
    done = txclf(folder, "train", *run)
    assert done.returncode == 2, done.stderr
    assert "800 CPUs, but Ray has" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (["train", "run.yaml", "--resum"], "--resume"),
        (["predict", "model", "in.csv", "--out", "out.csv", "--chunk-row", "5"], "--chunk-rows"),
        (["serve", "model", "--replica", "2"], "--replicas"),
        (["export", "model", "--formats", "onnx"], "--format"),
    ],
)
def test_main_unknown_option_names_the_nearest(arguments: list[str], nearest: str) -> None:
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "100", "TERMINAL_WIDTH": "100"})
    assert done.exit_code == 2
    assert "No such option: " in done.output
    assert re.search(rf"{nearest}\b", done.output.split("No such option: ")[1].split(" ", 1)[1])


def test_main_hostile_names_in_an_encoding_that_lacks_them_are_escaped(tmp_path: Path) -> None:
    rows = [[f"text {number}", ("météo", "\x1b[31m\u202e" + "x" * 50_000)[number % 2]] for number in range(40)]
    with (tmp_path / "in.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *rows])
    command = [TXCLF, "inspect", "in.csv"]
    variables = {**environment(), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, check=True)
    shown = (done.stdout + done.stderr).decode("ascii")
    assert r"m\xe9t\xe9o" in shown
    assert r"\x1b[31m\u202exx" in shown
    assert "\x1b" not in shown
    assert len(shown) < 6_000


def readme_commands() -> list[str]:
    """Return the README's shell lines without `make`, which sets up this environment."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    return [line for line in "".join(blocks).splitlines() if not line.startswith("make")]


def test_readme_commands_run_in_order(folder: Path, tmp_path: Path) -> None:
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

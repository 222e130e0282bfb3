"""The options that every command has, and its help."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer.core
import typer.main
from typer.testing import CliRunner

from txclf.cli import lines
from txclf.cli.commands import Commands, Json
from txclf.cli.main import app
from txclf.core.errors import ConfigError


def each_command(command: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words of each command."""
    if isinstance(command, typer.core.TyperGroup):
        for name, below in command.commands.items():
            yield from each_command(below, (*names, name))
    else:
        yield names


EVERY = list(each_command(typer.main.get_command(app)))


@pytest.mark.parametrize("words", [(), ("jobs",), *EVERY], ids=" ".join)
def test_help_of_each_command_fits_and_has_no_types(words: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app, [*words, "-h"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert shown.exit_code == 0
    assert (
        shown.stdout
        == CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}).stdout
    )
    assert not re.search(r"<[a-z]+>|<[a-z]+\[", shown.stdout)
    assert "[[" not in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80
    if words in EVERY:
        assert all(option in shown.stdout for option in ("--quiet", "--verbose", "-h"))


@pytest.fixture
def small() -> Commands:
    """Return an app whose command prints a result, a note and a next step."""
    commands = Commands()

    @commands.command()
    def work(as_json: Json = False) -> None:
        """Do some work."""
        lines.note("working")
        lines.out("a result")
        lines.next_steps("txclf rest")
        if as_json:
            lines.result({"value": float("nan"), "name": "météo"})

    @commands.command()
    def fail() -> None:
        """Raise an error that a user can fix."""
        raise ConfigError("`a`: wrong. Fix it.")

    return commands


@pytest.mark.parametrize(
    ("options", "stdout", "stderr"),
    [
        ([], "a result\nnext: txclf rest\n", "working\n"),
        (["-q"], "a result\n", ""),
        (["--json"], '{\n  "value": null,\n  "name": "météo"\n}\n', "working\na result\nnext: txclf rest\n"),
        (["--json", "--quiet"], '{\n  "value": null,\n  "name": "météo"\n}\n', ""),
    ],
)
def test_options_say_what_is_printed(small: Commands, options: list[str], stdout: str, stderr: str) -> None:
    done = CliRunner().invoke(small, ["work", *options])
    assert (done.stdout, done.stderr) == (stdout, stderr)


def test_verbose_prints_logs_and_the_time(small: Commands) -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        done = CliRunner().invoke(small, ["work", "-v"])
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    assert done.stderr.startswith("working\ntime: 0.")
    assert lines.mode == lines.Mode()


def test_verbose_prints_the_traceback_of_an_error(small: Commands) -> None:
    assert "Traceback" not in CliRunner().invoke(small, ["fail"]).stderr
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        done = CliRunner().invoke(small, ["fail", "-v"])
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    assert isinstance(done.exception, ConfigError)
    assert "ConfigError: `a`: wrong. Fix it." in done.stderr

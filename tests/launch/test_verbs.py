"""The commands that run as jobs."""

from __future__ import annotations

import typer

from txclf.cli.main import app
from txclf.launch import verbs


def test_verbs_are_commands_whose_run_file_stands_where_it_is_said() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for verb in verbs.VERBS:
        names = [one.name for one in commands[verb].params if one.param_type_name == "argument"]
        assert verbs.RUN_FILE_AT.get(verb) == (names.index("run_file") if "run_file" in names else None)

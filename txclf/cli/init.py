"""The command that writes a first run file for labelled files: init."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from txclf.cli import lines
from txclf.cli.commands import Commands, Json
from txclf.core.errors import ConfigError

commands = Commands()
RUN_FILE = "run.yaml"


@commands.command()
def init(
    data: Annotated[
        list[str], typer.Argument(metavar="DATA", help="Labelled files, globs, folders or URIs.", show_default=False)
    ],
    out: Annotated[str, typer.Option("--out", help="Run file to write; its name is that of the run.")] = RUN_FILE,
    text_column: Annotated[
        list[str] | None, typer.Option("--text-column", help="Text column(s), if the guess is wrong.")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option("--label-column", help="Label column, if the guess is wrong.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Look at labelled files and write a run file for them, ready for `txclf train`."""
    from txclf.cli import console
    from txclf.core import storage
    from txclf.data import starter as verb

    if storage.exists(out):
        raise ConfigError(f"`{out}`: exists already. Pass another --out, or remove the file.")
    lines.note(f"reading {', '.join(data)}")
    found = verb.starter(data, text_column or [], label_column, None if out == RUN_FILE else out)
    if not as_json:
        console.table("Found", ["", ""], list(found.facts.items()))
    for warning in found.warnings:
        console.note(f"warning: {warning}")
    storage.write_bytes(out, found.content.encode())
    lines.out(f"run file: {out}")
    lines.next_steps(f"txclf train {shlex.quote(out)}")
    if as_json:
        lines.result({"out": out, "found": found.facts, "warnings": found.warnings})

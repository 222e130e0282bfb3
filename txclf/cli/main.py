"""The `txclf` command: the typer app and its entry point.

Each group of commands is a module of this package. Commands import heavy modules in their body, so `--help` is quick.
"""

from __future__ import annotations

import gc
from typing import Annotated

import typer

from txclf._version import __version__
from txclf.cli import audit, cluster, curve, demo, export, init, lines, predict, results, serve, train
from txclf.cli.commands import Commands
from txclf.core import cpus
from txclf.core.errors import TxclfError

GC_THRESHOLD = 50_000
"""Allocations between two garbage collections; Python's 700 cause hundreds of collections while modules load."""

app = Commands(
    name="txclf",
    help="Train, tune, evaluate and serve transformer text classifiers. One run file describes a run.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for group in (init, train, audit, curve, demo, predict, results, export, serve, cluster):
    app.add_typer(group.commands)


def _version(value: bool) -> None:
    if value:
        lines.out(f"txclf {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command of `sys.argv`. A `TxclfError` ends it with one message and exit code 2."""
    gc.set_threshold(GC_THRESHOLD)
    cpus.share()
    lines.accept_every_character()
    try:
        app()
    except TxclfError as error:
        lines.err(f"error: {error}")
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None

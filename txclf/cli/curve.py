"""The command that says what more labels would bring: curve."""

from __future__ import annotations

import shlex
import time
from typing import Annotated, Any

import typer

from txclf.cli import lines
from txclf.cli.commands import Commands, Json

commands = Commands()


@commands.command()
def curve(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder.", show_default=False)],
    points: Annotated[
        int, typer.Option("--points", min=1, max=12, help="Parts of the rows: a half, a quarter and so on.")
    ] = 4,
    as_json: Json = False,
) -> None:
    """Train a run again on parts of its rows, and forecast what more labelled rows would bring."""
    lines.note(f"reading the rows of `{run}`")
    from txclf.artifacts import run_folder
    from txclf.cli.train import train_run
    from txclf.core import storage
    from txclf.evaluation import learning_curve as verb
    from txclf.reports import result_pages

    planned = verb.plan(run, points)
    for part in planned.parts.values():
        train_run(part, resume=verb.is_begun(part), started=time.time(), is_part=True)
    found = result_pages.curve(planned)
    print_curve(found)
    lines.out(f"all figures: {storage.join(planned.folder, verb.RESULT)}")
    lines.out(f"page: {storage.join(run, result_pages.CURVE_PAGE)}")
    if run_folder.kind(run) == "run":  # `audit` takes no search
        lines.next_steps(f"txclf audit {shlex.quote(run)}   # or better labels instead of more")
    if as_json:
        lines.result(found)


def print_curve(found: dict[str, Any]) -> None:
    """Print the points of a learning curve and its forecast."""
    from txclf.cli import console

    score = found["score"]
    names = {"accuracy": "accuracy", "f1_micro": "micro F1"}
    rows, before = [], None
    for point in found["points"]:
        gain = "" if before is None else f"{point[score] - before:+.4f}"
        rows.append([f"{point['rows']:,}", f"{point[score]:.4f}", gain, f"{point['loss']:.4f}"])
        before = point[score]
    columns = ["training rows", names[score], "gain", "loss"]
    console.table(f"Learning curve, {found['valid_rows']:,} validation rows", columns, rows)
    for one in found["forecast"]:
        times = one["rows"] // found["points"][-1]["rows"]
        value, low, high = one[score], one["low"], one["high"]
        lines.out(f"{times} x the rows ({one['rows']:,}): {names[score]} {value:.4f} (95 %: {low:.4f} to {high:.4f})")

"""The commands that look at what is there: predict, report, inspect. Heavy imports inside the commands."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from txclf.config.sections import Compute

commands = typer.Typer()


@commands.command()
def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model bundle.", show_default=False)],
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT…", help="Files, globs, folders or URIs.")],
    out: Annotated[str, typer.Option("--out", help="Where to write: .csv, .tsv, .jsonl (also .gz, .zst), .parquet.")],
    probabilities: Annotated[bool, typer.Option("--probabilities", help="A column for each label too.")] = False,
    text: Annotated[list[str] | None, typer.Option("--text", help="Column(s) that hold the text here.")] = None,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Workers of Ray; 0 = in this process.")] = 0,
    cpus: Annotated[float | None, typer.Option("--cpus-per-worker", min=0.01, help="CPUs of each (1).")] = None,
    gpus: Annotated[float | None, typer.Option("--gpus-per-worker", min=0, help="GPUs of each.")] = None,
    address: Annotated[str | None, typer.Option("--address", help="Ray cluster to join: `auto`, `host:port`.")] = None,
    chunk_rows: Annotated[int, typer.Option("--chunk-rows", min=1, help="Rows that are finished together.")] = 4096,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew, not where a stop left it.")] = False,
) -> None:
    """Predict every row of files: their columns stay, `label` and `probability` (or `labels`) are added.

    Stopped or killed, it goes on where it was when you ask for it again in the same words.
    """
    from txclf.cli import console
    from txclf.prediction import predict as verb

    started = time.monotonic()
    before: list[int] = []

    def show(rows: int) -> None:
        before[:] = before or [rows]
        bar.update(rows, None, f"{_rate(rows - before[0], started)} rows/s")

    compute = _compute(workers, {"cpus_per_worker": cpus, "gpus_per_worker": gpus, "address": address})
    with _workers(compute, out), console.Bar("predicting") as bar, _stoppable():
        done = verb.predict(
            model,
            inputs,
            out=out,
            probabilities=probabilities,
            text_columns=text,
            on_progress=show,
            compute=compute,
            chunk_rows=chunk_rows,
            restart=restart,
        )
    rate = _rate(done.rows - done.resumed_rows, started)
    went_on = f" ({done.resumed_rows:,} of them finished before)" if done.resumed_rows else ""
    print(f"{done.rows:,} rows{went_on}, {rate} a second: `{out}` (added: {', '.join(done.columns)})")
    if done.bad:
        print(
            f"{done.bad:,} row(s) could not be read and have no prediction: see `{out}.errors.jsonl`", file=sys.stderr
        )


def _compute(workers: int, told: dict[str, Any]) -> Compute | None:
    from txclf.config.sections import Compute
    from txclf.core.errors import ConfigError

    told = {key: value for key, value in told.items() if value is not None}
    if workers:
        return Compute(workers=workers, **told)
    for key in told:
        raise ConfigError(f"--{key.replace('_', '-')}: say how many workers of Ray are to predict: --workers N")
    return None


@contextmanager
def _stoppable() -> Iterator[None]:
    """Ends the command in order, with a word, when a signal asks for it."""

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except SystemExit:
        print("stopped; what is finished is kept: ask again in the same words to go on", file=sys.stderr)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _workers(compute: Compute | None, out: str) -> Iterator[None]:
    """Ray with room for the workers, where there are any."""
    if compute is None:
        yield
        return
    from txclf import ray_cluster
    from txclf.core import storage
    from txclf.launch import preflight

    # Ray's core warns of each actor of Ray Data that what it was made of could be lost. Not while this process lives.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    with ray_cluster.connected(compute):
        ray_cluster.require(compute)
        preflight.require_shared(storage.folder_of(out))
        yield


@commands.command()
def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN…", help="A run or search folder, or several runs.")],
    out: Annotated[str | None, typer.Option("--out", help="Where to write, if not into the folder.")] = None,
) -> None:
    """Make a page of a run or a search that needs no network, or one that compares several runs."""
    from txclf.reports import report as verb

    print(f"report: {verb.report(runs, out)}")


@commands.command()
def inspect(
    path: Annotated[str, typer.Argument(metavar="PATH", help="Raw files, prepared data, a run, a search, a bundle.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print it for machines.")] = False,
    text: Annotated[list[str] | None, typer.Option("--text", help="Of raw files: the column(s) of the text.")] = None,
    label: Annotated[str | None, typer.Option("--label", help="Of raw files: the column of the label.")] = None,
) -> None:
    """Say what a path is: an audit of raw files, how far a run has come, what a bundle holds, and how to go on."""
    import json

    from txclf.reports import inspect as verb

    found = verb.inspect(path, text or [], label)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        _show(found)


SHOWN = 30
"""Rows of a table on the screen."""


def _show(found: dict[str, Any]) -> None:
    """Plain values as a table, lists of records as tables of their own, then what can be done next."""
    from txclf.cli import console
    from txclf.config import run_config

    names = {"data": "raw data", "prepared": "prepared data", "bundle": "model bundle"}
    plain: list[tuple[str, str]] = []
    tables: list[tuple[str, list[dict[str, Any]]]] = []
    for key, value in found.items():
        title = key.replace("_", " ")
        if key in ("kind", "path", "next", "suggested"):
            continue
        if isinstance(value, list) and value and isinstance(value[0], dict):
            tables.append((title, value))
        elif value not in (None, [], {}):
            plain.append((title, _short(value)))
    console.table(f"{names.get(found['kind'], found['kind'])}: {found['path']}", ["", ""], plain)
    for title, rows in tables:
        more = f" ({len(rows) - SHOWN:,} more with --json)" if len(rows) > SHOWN else ""
        cells = [[_short(value) for value in row.values()] for row in rows[:SHOWN]]
        console.table(title + more, [name.replace("_", " ") for name in rows[0]], cells)
    if "suggested" in found:
        print("a run file for it:\n")
        print("\n".join(f"  {line}" for line in run_config.written(found["suggested"]).splitlines()))
    for command in found.get("next", []):
        print(f"next: {command}")


def _short(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(one)}" for key, one in value.items() if one is not None)
    if isinstance(value, list):
        more = f" and {len(value) - SHOWN:,} more" if len(value) > SHOWN else ""
        return ", ".join(_short(one) for one in value[:SHOWN]) + more
    return str(value)


def page(folder: str) -> None:
    """The page at the end of a run, a search or an evaluation."""
    from txclf.reports import report as verb

    place = verb.after(folder)
    if place:
        print(f"report:     {place}")


def _rate(rows: int, started: float) -> str:
    return f"{rows / max(1e-9, time.monotonic() - started):,.0f}"

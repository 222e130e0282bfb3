"""Commands that use or describe results: predict, report, inspect."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from txclf.cli import lines
from txclf.core import text as texts
from txclf.core.signals import stop_signals

if TYPE_CHECKING:
    from txclf.config.sections import Compute

commands = typer.Typer()

CpusPerWorker = Annotated[
    float | None, typer.Option("--cpus-per-worker", min=0.01, help="CPUs per Ray worker; 1 if not given.")
]
GpusPerWorker = Annotated[float | None, typer.Option("--gpus-per-worker", min=0, help="GPUs per Ray worker.")]
Address = Annotated[str | None, typer.Option("--address", help="Ray cluster to join: `auto` or `host:port`.")]


@commands.command()
def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model bundle.", show_default=False)],
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT…", help="Files, globs, folders or URIs.")],
    out: Annotated[str, typer.Option("--out", help="Output file: .csv, .tsv, .jsonl (also .gz, .zst) or .parquet.")],
    *,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Add a column with the probability of each label.")
    ] = False,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="Text column(s) of the inputs, if they differ from the training data's."),
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="Ray workers; 0 predicts in this process, without Ray.")
    ] = 0,
    cpus: CpusPerWorker = None,
    gpus: GpusPerWorker = None,
    address: Address = None,
    chunk_rows: Annotated[
        int, typer.Option("--chunk-rows", min=1, help="Rows per chunk; an interrupted chunk is predicted again.")
    ] = 4096,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start over instead of resuming an interrupted prediction.")
    ] = False,
) -> None:
    """Predict each row of the input files and add the columns `label` and `probability`, or `labels`.

    An interrupted prediction resumes if the command is run again with the same arguments.
    """
    from txclf.cli import console, displays
    from txclf.core import storage
    from txclf.prediction import predict as verb

    started = time.monotonic()
    compute = worker_compute(workers, {"cpus_per_worker": cpus, "gpus_per_worker": gpus, "address": address})
    with connected_workers(compute, storage.folder_of(out)), console.Bar("predicting") as bar, _exit_on_signal(out):
        display = displays.PredictionDisplay(bar, started)
        summary = verb.predict(
            model,
            inputs,
            out=out,
            probabilities=probabilities,
            text_columns=text,
            on_progress=display.show,
            compute=compute,
            chunk_rows=chunk_rows,
            restart=restart,
        )
    resumed = f" ({summary.resumed_rows:,} of them by an earlier command)" if summary.resumed_rows else ""
    rate = display.rate(summary.rows - summary.resumed_rows)
    lines.out(f"{summary.rows:,} rows{resumed}, {rate} rows/s: `{out}` (added: {texts.listed(summary.columns, '')})")
    if summary.bad:
        lines.err(
            f"`{out}`: {summary.bad:,} row(s) could not be read and have no prediction. See `{out}.errors.jsonl`."
        )


def worker_compute(workers: int, options: dict[str, Any]) -> Compute | None:
    """Return the settings of Ray, or None without workers. Raises `ConfigError` for an option that needs workers."""
    from txclf.config.sections import Compute
    from txclf.core.errors import ConfigError

    options = {key: value for key, value in options.items() if value is not None}
    if workers:
        return Compute(workers=workers, **options)
    for key in options:
        raise ConfigError(f"--{key.replace('_', '-')}: needs Ray workers. Pass --workers with their number.")
    return None


@contextmanager
def _exit_on_signal(out: str) -> Iterator[None]:
    """End the command with a message on the first stop signal."""
    with stop_signals(max_collected=0):
        try:
            yield
        except SystemExit:
            lines.err(f"`{out}`: stopped, and the finished chunks are saved. Run the same command again to resume.")
            raise


@contextmanager
def connected_workers(compute: Compute | None, shared: str) -> Iterator[None]:
    """Connect to a Ray cluster with enough resources for the workers, if there are any; all nodes reach `shared`."""
    if compute is None:
        yield
        return
    from txclf import ray_cluster
    from txclf.launch import preflight

    # Ray warns that the arguments of each Ray Data actor could be lost, which cannot happen while this process lives.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    with ray_cluster.connected(compute):
        ray_cluster.require(compute)
        preflight.require_shared(shared)
        yield


@commands.command()
def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN…", help="A run or search folder, or several runs.")],
    out: Annotated[
        str | None, typer.Option("--out", help="Output file; without it, report.html in the folder.")
    ] = None,
) -> None:
    """Write a self-contained HTML report of a run or a search, or a comparison of several runs."""
    from txclf.reports import report as verb

    lines.out(f"report: {verb.report(runs, out)}")


@commands.command()
def inspect(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="Raw files, prepared data, a run, a search or a model bundle.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    text: Annotated[list[str] | None, typer.Option("--text", help="Text column(s) of raw files.")] = None,
    label: Annotated[str | None, typer.Option("--label", help="Label column of raw files.")] = None,
) -> None:
    """Describe a path: an audit of raw files, the progress of a run, the contents of a bundle; print the next steps."""
    import json

    from txclf.reports import inspect as verb

    description = verb.inspect(path, text or [], label)
    if as_json:
        print(json.dumps(description, indent=2))
    else:
        print_description(description)


MAX_ROWS = 30
"""Maximum number of rows of a table, or items of a list, on the screen."""
MAX_VALUE_CHARS = 300
"""Maximum number of characters of one value on the screen."""
MAX_RUN_FILE_LINES = 60
"""Maximum number of lines of a run file that is suggested."""
KINDS = {"data": "raw data", "prepared": "prepared data", "bundle": "model bundle"}
"""Titles of the kinds of `inspect` whose names do not say enough."""


def print_description(description: dict[str, Any]) -> None:
    """Print the plain values as one table, each list of records as its own table, then the next steps."""
    from txclf.cli import console

    plain: list[tuple[str, str]] = []
    tables: list[tuple[str, list[dict[str, Any]]]] = []
    for key, value in description.items():
        title = key.replace("_", " ")
        if key in ("kind", "path", "next", "suggested", "warnings"):
            continue
        if isinstance(value, list) and value and isinstance(value[0], dict):
            tables.append((title, value))
        elif value not in (None, [], {}):
            plain.append((title, _format(value)))
    kind = description["kind"]
    console.table(f"{KINDS.get(kind, kind)}: {description['path']}", ["", ""], plain)
    for title, rows in tables:
        more = f" ({len(rows) - MAX_ROWS:,} more with --json)" if len(rows) > MAX_ROWS else ""
        cells = [[_format(value, texts.MAX_CHARS) for value in row.values()] for row in rows[:MAX_ROWS]]
        console.table(title + more, [name.replace("_", " ") for name in rows[0]], cells)
    for warning in description.get("warnings", []):
        console.note(f"warning: {warning}")
    if "suggested" in description:
        from txclf.config import yaml_text

        run_file = yaml_text.written(description["suggested"]).splitlines()
        if len(run_file) <= MAX_RUN_FILE_LINES:
            lines.out("a run file for it:\n")
            lines.out("\n".join(f"  {line}" for line in run_file))
        else:
            lines.out("no run file is suggested, because the names of the columns are very long: is a header missing?")
    for command in description.get("next", []):
        lines.out(f"next: {command}")


def _format(value: Any, max_chars: int = MAX_VALUE_CHARS) -> str:
    """Return a value of a description as short text."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
    if isinstance(value, dict):
        return ", ".join(
            f"{texts.shown(key)} {_format(item, texts.MAX_CHARS)}" for key, item in value.items() if item is not None
        )
    if isinstance(value, list):
        more = f" and {len(value) - MAX_ROWS:,} more" if len(value) > MAX_ROWS else ""
        return ", ".join(_format(item, texts.MAX_CHARS) for item in value[:MAX_ROWS]) + more
    return texts.shown(value, max_chars)


def write_report(folder: str) -> None:
    """Write the report of a run, a search or an evaluation, and print its path."""
    from txclf.reports import report as verb

    path = verb.after(folder)
    if path:
        lines.out(f"report:     {path}")

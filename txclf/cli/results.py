"""Commands that describe results: report, inspect, drift; and the options of workers."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from txclf.cli import lines
from txclf.cli.commands import Commands, Json
from txclf.core import text as texts

if TYPE_CHECKING:
    from txclf.config.sections import Compute

commands = Commands()

CpusPerWorker = Annotated[
    float | None, typer.Option("--cpus-per-worker", min=0.01, help="CPUs per Ray worker; 1 if not given.")
]
GpusPerWorker = Annotated[float | None, typer.Option("--gpus-per-worker", min=0, help="GPUs per Ray worker.")]
Address = Annotated[str | None, typer.Option("--address", help="Ray cluster to join: `auto` or `host:port`.")]


@contextmanager
def connected_workers(compute: Compute | None, shared: str) -> Iterator[None]:
    """Connect to a Ray cluster with enough resources for the workers, if there are any; all nodes reach `shared`."""
    if compute is None:
        yield
        return
    from txclf.launch import preflight

    # Ray warns that the arguments of each Ray Data actor could be lost, which cannot happen while this process lives.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    with preflight.connected(compute, shared):
        from txclf import ray_cluster

        if note := ray_cluster.unused_gpus(compute):
            lines.note(note)
        yield


@commands.command()
def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="A run or search folder, or several runs.")],
    out: Annotated[
        str | None, typer.Option("--out", help="Output file; without it, report.html in the folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a self-contained HTML report of a run or a search, or a comparison of several runs."""
    lines.note(f"reading {texts.listed(runs)}")
    from txclf.reports import report as verb

    path = verb.report(runs, out)
    lines.out(f"report: {path}")
    if "://" not in path:
        lines.next_steps(f"python -m webbrowser {shlex.quote(path)}")
    if as_json:
        lines.result({"report": path})


@commands.command()
def inspect(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="Raw files, prepared data, a run, a search or a model bundle.")
    ],
    as_json: Json = False,
    text_column: Annotated[list[str] | None, typer.Option("--text-column", help="Text column(s) of raw files.")] = None,
    label_column: Annotated[str | None, typer.Option("--label-column", help="Label column of raw files.")] = None,
) -> None:
    """Describe a path: an audit of raw files, the progress of a run, the contents of a bundle; print the next steps."""
    from txclf.reports import inspect as verb

    description = verb.inspect(path, text_column or [], label_column)
    if as_json:
        lines.result(description)
    else:
        print_description(description)


@commands.command()
def drift(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder.", show_default=False)],
    data: Annotated[list[str], typer.Argument(metavar="DATA", help="New files; labels are not read.")],
    *,
    encoding: Annotated[
        str | None, typer.Option("--encoding", help="Encoding of text files; the run's if not given.")
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option("--delimiter", help="Character between csv columns; the run's if not given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare new texts with those that the model of a run was made for: words, lengths, predicted labels, vectors."""
    lines.note(f"comparing {texts.listed(data)} with the rows of `{run}`")
    from txclf.cli import tables
    from txclf.evaluation.drift import RESULT
    from txclf.reports import result_pages

    found = result_pages.drift(run, data, encoding=encoding, delimiter=delimiter)
    tables.print_drift(found)
    lines.out(f"all figures: {os.path.join(run, RESULT)}")
    lines.out(f"page: {os.path.join(run, result_pages.DRIFT_PAGE)}")
    if found["findings"]:
        lines.next_steps(f"txclf evaluate {shlex.quote(run)} --data LABELLED.csv   # label some of the new rows")
    else:
        from txclf.config import run_config
        from txclf.core import storage

        read_as = run_config.load(storage.join(run, "run.yaml")).data
        options = {"--encoding": encoding or read_as.encoding, "--delimiter": delimiter or read_as.delimiter}
        words = [storage.join(run, "model"), *data, "--out", "out.csv"]
        for name, value in options.items():
            words += [name, value] if value not in (None, "utf-8") else []
        lines.next_steps(f"txclf predict {shlex.join(words)}")
    if as_json:
        lines.result(found)


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
    lines.next_steps(*description.get("next", []))


def _format(value: Any, max_chars: int = MAX_VALUE_CHARS) -> str:
    """Return a value of a description as short text."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, int | float):
        return texts.compact(value)
    if isinstance(value, dict):
        return ", ".join(
            f"{texts.shown(key)} {_format(item, texts.MAX_CHARS)}" for key, item in value.items() if item is not None
        )
    if isinstance(value, list):
        more = f" and {len(value) - MAX_ROWS:,} more" if len(value) > MAX_ROWS else ""
        return ", ".join(_format(item, texts.MAX_CHARS) for item in value[:MAX_ROWS]) + more
    return texts.shown(value, max_chars)


def print_advice(folder: str) -> None:
    """Print what to change about a run, from its files. A search has no such advice."""
    from txclf.artifacts import run_folder
    from txclf.reports import advice, run_scores

    if run_folder.kind(folder) == "run":
        state = run_folder.read_run(folder)
        for sentence in advice.of_run(state, run_scores.evaluation(state)):
            lines.out(f"advice: {sentence}")


def write_report(folder: str) -> None:
    """Write the report of a run, a search or an evaluation, and print its path."""
    from txclf.reports import report as verb

    path = verb.after(folder)
    if path:
        lines.out(f"report:     {path}")

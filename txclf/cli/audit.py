"""The command that describes labels: audit."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from txclf.cli import lines
from txclf.cli.commands import Commands, Json
from txclf.core import text

if TYPE_CHECKING:
    from txclf.config.run_config import RunConfig

MAX_OUTLIERS = 3
"""Rows like no other on the screen."""

commands = Commands()


@commands.command()
def audit(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder.", show_default=False)],
    folds: Annotated[
        int, typer.Option("--folds", min=2, max=100, help="Folds of the rows; a model of the other folds judges each.")
    ] = 5,
    out: Annotated[
        str | None, typer.Option("--out", help="Output folder; without it, RUN/audit.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Find rows whose label is probably wrong, and conflicting near-duplicates; write a csv file to correct."""
    lines.note(f"auditing the labels of `{run}`")
    from txclf.auditing import audit as verb
    from txclf.cli import console
    from txclf.config import run_config
    from txclf.core import storage
    from txclf.reports import result_pages

    with console.Bar("training") as bar:
        found = result_pages.audit(
            run, folds=folds, out=out, report=lambda done, total: bar.update(done, total, "folds")
        )
    target = out or storage.join(run, verb.FOLDER)
    print_audit(found, target)
    if found["suspects"]:
        suspects = storage.join(target, verb.SUSPECTS)
        lines.out(f"fill in the column `corrected` of {suspects}, then")
        lines.next_steps(_train(run_config.load(storage.join(run, "run.yaml")), run, suspects))
    if as_json:
        lines.result(found)


def print_audit(found: dict[str, Any], target: str) -> None:
    """Print the summary of an audit in 80 columns."""
    from txclf.auditing import audit as verb
    from txclf.cli import console
    from txclf.core import storage
    from txclf.reports import result_pages

    kinds, share = found["kinds"], found["suspects"] / found["rows"]
    lines.out(f"{found['suspects']:,} of {found['rows']:,} labels are doubtful ({share:.1%}):")
    lines.out(f"  {kinds[verb.LABEL]:,} doubted by models of the other rows ({found['model']})")
    if found["conflicting_texts"]:
        lines.out(f"  {kinds[verb.DUPLICATE]:,} row(s) of {found['conflicting_texts']:,} text(s) with several labels")
    if kinds[verb.NEAR]:
        lines.out(f"  {kinds[verb.NEAR]:,} of near-duplicates that have other labels")
    lines.out(
        f"{found['near_duplicate_rows']:,} rows are in {found['near_duplicate_groups']:,} groups of near-duplicates"
    )
    if found["suspects"]:
        rows = [
            [
                text.shown(row["text"], 27),
                text.shown(row["label"], 12),
                text.shown(row["suggested"], 12),
                text.shown(_place(row), 16),
            ]
            for row in found["most_doubtful"]
        ]
        console.table("Most doubtful labels", ["text", "label", "suggested", "row"], rows)
    if found["outlier_rows"]:
        lines.out(f"{found['outlier_rows']:,} rows share hardly a word with any training row, the least first:")
        for row in found["outliers"][: min(MAX_OUTLIERS, found["outlier_rows"])]:
            lines.out(f"  {text.shown(row['text'], 50)}   {text.shown(_place(row), 20)}")
    lines.out(f"every row, hardest first: {storage.join(target, verb.ROWS)}")
    lines.out(f"page: {storage.join(target, result_pages.AUDIT_PAGE)}")


def _place(row: dict[str, Any]) -> str:
    """Return the name of a row's file and its number."""
    return f"{row['file'].rpartition('/')[2]}:{row['row']}"


def _train(run: RunConfig, folder: str, suspects: str) -> str:
    """Return the command that trains the run again on corrected labels."""
    from txclf.core import storage

    files = [*(run.data.corrections or ()), suspects]
    paths = json.dumps(files, ensure_ascii=False) if len(files) > 1 else files[0]
    return " ".join(
        map(
            shlex.quote,
            [
                "txclf",
                "train",
                storage.join(folder, "run.yaml"),
                f"name={run.name}-corrected",
                f"data.corrections={paths}",
            ],
        )
    )

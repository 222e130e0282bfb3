"""Command that writes a bundle in other formats: export."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from txclf.cli import lines
from txclf.cli.commands import Commands, Json

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Model bundle.", show_default=False)]

commands = Commands()


@commands.command()
def export(
    model: Model,
    *,
    out: Annotated[
        str | None, typer.Option("--out", help="Folder for the files; without it, `export` in the bundle.")
    ] = None,
    form: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="onnx, torch, int8 or mlflow; without it, the first three.",
            autocompletion=lambda: ["onnx", "torch", "int8", "mlflow"],
        ),
    ] = None,
    data: Annotated[list[str] | None, typer.Option("--data", help="Files with test rows; they need no labels.")] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Maximum number of test rows.")] = 1000,
    min_agreement: Annotated[
        float,
        typer.Option(
            "--min-agreement", min=0, max=1, help="Minimum share of test rows with the bundle's answer, for int8."
        ),
    ] = 0.98,
    as_json: Json = False,
) -> None:
    """Write a model as ONNX, torch.export, 8-bit ONNX or for MLflow, and keep each that gives the bundle's answers."""
    lines.note(f"exporting `{model}`")
    from txclf.cli import console
    from txclf.core import storage
    from txclf.inference import bundle
    from txclf.inference import export as verb

    out = out or storage.join(model, "export")
    formats = [verb.parse_format(name) for name in form or verb.DEFAULTS]
    exports = verb.export(model, out, formats=formats, data=data, rows=rows, min_agreement=min_agreement)
    console.table(
        f"{exports[0].rows:,} rows by each file and by the bundle",
        ["format", "MB", "largest difference", "same answers", "rows/s", "x bundle", "kept"],
        [
            [
                exported.format,
                f"{exported.bytes / 1e6:.2f}",
                f"{exported.largest_difference:.2g}",
                f"{exported.agreement:.2%}",
                f"{exported.rows_per_second:,.0f}",
                f"{exported.rows_per_second / exported.bundle_rows_per_second:.2f}",
                "yes" if exported.kept else "no",
            ]
            for exported in exports
        ],
    )
    rejected = [exported for exported in exports if not exported.kept]
    for exported in rejected:
        if exported.format == "int8":
            expected = f"at least {min_agreement:.0%} are required"
        else:
            expected = f"all are required, with logits within {verb.TOLERANCE}"
        lines.err(
            f"{exported.format} is not kept: {exported.agreement:.2%} of the answers match the bundle's, {expected}"
        )
    lines.out(f"in `{out}`, described by {verb.RECORD}")
    if verb.left_out(bundle.read_metadata(model)) and set(formats) != {"mlflow"}:
        lines.out("the graphs hold the network alone, without the n-gram model of the bundle")
    if "://" not in out:
        lines.next_steps(
            f"python -m json.tool {shlex.quote(storage.join(out, verb.RECORD))}   # labels, inputs, outputs"
        )
    if as_json:
        lines.result({"out": out, "exports": [exported.model_dump(mode="json") for exported in exports]})
    if rejected:
        raise typer.Exit(1)

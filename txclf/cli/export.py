"""The commands that take a bundle elsewhere: export. Heavy imports inside the commands."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A model bundle.", show_default=False)]

commands = typer.Typer()


@commands.command()
def export(
    model: Model,
    out: Annotated[str | None, typer.Option("--out", help="Folder for the files.  [default: MODEL/export]")] = None,
    form: Annotated[list[str] | None, typer.Option("--format", help="onnx, torch or int8.  [default: all]")] = None,
    data: Annotated[list[str] | None, typer.Option("--data", help="Files with rows to test on, labels or not.")] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Rows to test on.")] = 1000,
    min_agreement: Annotated[
        float, typer.Option("--min-agreement", min=0, max=1, help="Share of answers that int8 must leave as they are.")
    ] = 0.98,
) -> None:
    """Write a model as ONNX, torch.export and 8-bit ONNX; a file is kept if it answers as the bundle does."""
    from txclf.cli import console
    from txclf.core import storage
    from txclf.inference import export as verb

    out = out or storage.join(model, "export")
    formats = [verb.parse_format(name) for name in form or verb.FORMATS]
    done = verb.export(model, out, formats=formats, data=data, rows=rows, min_agreement=min_agreement)
    console.table(
        f"{done[0].rows:,} rows by each file and by the bundle",
        ["format", "MB", "largest difference", "same answers", "rows/s", "x bundle", "kept"],
        [
            [
                one.format,
                f"{one.bytes / 1e6:.2f}",
                f"{one.largest_difference:.2g}",
                f"{one.agreement:.2%}",
                f"{one.rows_per_second:,.0f}",
                f"{one.rows_per_second / one.bundle_rows_per_second:.2f}",
                "yes" if one.kept else "no",
            ]
            for one in done
        ],
    )
    refused = [one for one in done if not one.kept]
    for one in refused:
        wanted = (
            f"expected {min_agreement:.0%}"
            if one.format == "int8"
            else f"expected all, and logits within {verb.TOLERANCE}"
        )
        console.err.print(
            f"{one.format} is not kept: {one.agreement:.2%} of the answers are the bundle's: expected {wanted}",
            markup=False,
        )
    print(f"in `{out}`, described by {verb.RECORD}")
    if refused:
        raise typer.Exit(1)

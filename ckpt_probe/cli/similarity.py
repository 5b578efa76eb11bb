"""`ckpt-probe similarity`."""

from pathlib import Path

import click

from ckpt_probe.cli.output import require_writable
from ckpt_probe.errors import UsageError


@click.command("similarity", epilog="Example: ckpt-probe similarity dumps/layers/step-000880.h5 --split test")
@click.argument("dump", type=click.Path(path_type=Path))
@click.argument("other", type=click.Path(path_type=Path), required=False)
@click.option("--split", "splits", multiple=True, show_default="all", help="Split to compare on; repeatable.")
@click.option("--layer", "layers", multiple=True, show_default="all", help="Layer to compare; repeatable.")
@click.option(
    "--measure",
    "measures",
    type=click.Choice(["cka", "mir"]),
    multiple=True,
    show_default="both; cka for a directory of several dumps",
    help="Measure of similarity to compute; repeatable.",
)
@click.option("--json", is_flag=True, help="Print JSON Lines, one matrix per line; an undefined value is null.")
@click.option("--csv", is_flag=True, help="Print comma-separated values with a header, one value per line.")
@click.option("--wide", is_flag=True, help="Show every column, however wide the terminal is.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Also write to this file: CSV by its suffix, else JSON."
)
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
def command(
    dump: Path,
    other: Path | None,
    splits: tuple[str, ...],
    layers: tuple[str, ...],
    measures: tuple[str, ...],
    json: bool,
    csv: bool,
    wide: bool,
    out: Path | None,
    overwrite: bool,
) -> None:
    """Compare layers by linear CKA and MIR on the rows that extract --layers stores of each.

    DUMP is one .h5 file: its layers are compared with each other. If it is a directory of several, each layer is
    compared between the checkpoints. With OTHER, a second dump of the same data (of any model), the layers of DUMP are
    compared with those of OTHER.
    """
    if json and csv:
        raise UsageError("--json and --csv exclude each other")
    if out is not None:
        require_writable(out, "csv" if out.suffix.lower() == ".csv" else "json", overwrite=overwrite)

    from ckpt_probe.analysis import similarity
    from ckpt_probe.cli.console import bars, console, say
    from ckpt_probe.files import write_text
    from ckpt_probe.reporting.similarity_table import (
        similarities_csv,
        similarities_json,
        similarity_table,
        similarity_title,
    )

    with bars() as progress:
        matrices = []
        for matrix in similarity(
            dump,
            other,
            splits=splits or None,
            measures=measures or None,
            layers=layers or None,
            progress=progress,
        ):
            matrices.append(matrix)
            if json:
                click.echo(similarities_json([matrix]), nl=False)
    if csv:
        click.echo(similarities_csv(matrices), nl=False)
    for matrix in () if json or csv else matrices:
        screen = console(width=10_000 if wide else None)
        click.echo(similarity_title(matrix))
        screen.print(similarity_table(matrix, None if wide else screen.width))
    if out is not None:
        to_text = similarities_csv if out.suffix.lower() == ".csv" else similarities_json
        write_text(out, to_text(matrices), overwrite=overwrite)
        say(f"{out}: {len(matrices)} matrices")

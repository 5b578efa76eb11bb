"""Output of records: as a table, JSON Lines or CSV on standard output, or into a file."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckpt_probe.cli.flags import flags_for_keywords
from ckpt_probe.errors import printable

if TYPE_CHECKING:
    from ckpt_probe.moments.record import DetailedRecord

Record = Mapping[str, Any]


def print_records(
    records: Iterable[Record], *, json: bool, csv: bool, wide: bool, corrects: bool = False
) -> list[Record]:
    """Print records on standard output: JSON Lines one by one as they arrive, other formats at the end.

    With `corrects` the values in a table are less their bias; JSON and CSV have the bias as a column.

    Returns:
        The records.
    """
    from ckpt_probe.reporting import to_csv, to_json_line

    if json:
        printed = []
        for record in records:
            click.echo(printable(to_json_line(record)))
            printed.append(record)
        return printed
    rows = list(records)
    if csv:
        click.echo(to_csv(rows), nl=False)
    else:
        print_table(_less_bias(rows, corrects), wide=wide)
    return rows


def _less_bias(records: list[Record], corrects: bool) -> list[Record]:
    from ckpt_probe.analysis.entries import corrected

    return [corrected(record) for record in records] if corrects else records


def print_table(records: list[Record], *, wide: bool) -> None:
    """Print records as a table with footnotes."""
    from ckpt_probe.cli.console import console
    from ckpt_probe.reporting import footnotes, records_table

    screen = console(width=10_000 if wide else None)
    screen.print(records_table(records, width=None if wide else screen.width))
    for note in footnotes(records):
        click.echo(printable(flags_for_keywords(note)))


def print_grids(
    records: Iterable[Record], metric: str, *, csv: bool, wide: bool, corrects: bool = False
) -> list[Record]:
    """Print one metric by layer and step, as tables or CSV, and return the records."""
    from ckpt_probe.cli.console import console
    from ckpt_probe.reporting import to_csv
    from ckpt_probe.reporting.layers_table import grid_records, grid_table, grids_of

    rows = list(records)
    grids = grids_of(_less_bias(rows, corrects), metric)
    if csv:
        click.echo(to_csv(grid_records(grids)), nl=False)
        return rows
    for grid in grids:
        screen = console(width=10_000 if wide else None)
        click.echo(f"{grid.split}: {grid.metric}")
        screen.print(grid_table(grid, None if wide else screen.width))
    return rows


def file_format(path: Path) -> str:
    """Return the format of a file of records by its suffix: "csv", "parquet", or "json" (JSON Lines) for others."""
    return {".csv": "csv", ".parquet": "parquet"}.get(path.suffix.lower(), "json")


def require_writable(path: Path, *, overwrite: bool) -> None:
    """Raise UsageError if the file exists, or the libraries of its format are missing; call this before computing."""
    from ckpt_probe.files import refuse_existing

    refuse_existing(path, overwrite=overwrite)
    if file_format(path) == "parquet":
        from ckpt_probe.reporting.frames import require_parquet

        require_parquet(path, overwrite=overwrite)


def write_records(records: Iterable[Record], path: Path, *, overwrite: bool) -> None:
    """Write records into a file, in the format that its suffix names."""
    from ckpt_probe.files import write_text
    from ckpt_probe.reporting import to_csv, to_json_line, write_parquet

    rows, form = list(records), file_format(path)
    if form == "parquet":
        write_parquet(rows, path, overwrite=overwrite)
        return
    text = to_csv(rows) if form == "csv" else "".join(to_json_line(record) + "\n" for record in rows)
    write_text(path, text, overwrite=overwrite)


def write_spectra(readings: "Iterable[DetailedRecord]", path: Path, *, overwrite: bool) -> int:
    """Write the eigenvalues of every Gram matrix into an .npz file.

    Arrays are named CHECKPOINT/SPLIT/LEVEL.NAME, those of layers other than the penultimate
    CHECKPOINT/SPLIT/LAYER/LEVEL.NAME; with group and seed before them if the readings have these.

    Returns:
        The number of arrays.
    """
    import numpy as np

    from ckpt_probe.files import replacing

    arrays = {
        f"{_array_prefix(reading.record)}/{name}": values
        for reading in readings
        for name, values in reading.spectra.items()
    }
    with replacing(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    return len(arrays)


def _array_prefix(record: Record) -> str:
    from ckpt_probe.analysis.entries import GROUP_AND_SEED
    from ckpt_probe.dumps import PENULTIMATE

    layer = record.get("layer", PENULTIMATE)
    labels = [str(record[name]) for name in GROUP_AND_SEED if name in record]
    of_layer = [] if layer == PENULTIMATE else [str(layer)]
    return "/".join([*labels, str(record["checkpoint"]), str(record["split"]), *of_layer])

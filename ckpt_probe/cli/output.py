"""Records out: as a table, JSON Lines, CSV or Parquet, to standard output or into a file that is whole or absent."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckpt_probe.errors import printable

if TYPE_CHECKING:
    from ckpt_probe.moments.record import DetailedRecord

Record = Mapping[str, Any]


def print_records(records: Iterable[Record], *, json: bool, csv: bool, wide: bool) -> list[Record]:
    """Print records on standard output, as JSON Lines while they come, or at the end; returns them."""
    from ckpt_probe.report import to_csv, to_json_line

    if json:
        shown = []
        for record in records:
            click.echo(printable(to_json_line(record)))
            shown.append(record)
        return shown
    shown = list(records)
    if csv:
        click.echo(to_csv(shown), nl=False)
        return shown
    print_table(shown, wide=wide)
    return shown


def print_table(records: list[Record], *, wide: bool) -> None:
    """The table and its footnotes."""
    from ckpt_probe.cli.console import console
    from ckpt_probe.report import footnotes, records_table

    screen = console(width=10_000 if wide else None)
    screen.print(records_table(records, width=None if wide else screen.width))
    for note in footnotes(records):
        click.echo(printable(note))


def print_grids(records: Iterable[Record], metric: str, *, csv: bool, wide: bool) -> list[Record]:
    """Print one metric by layer and step, as tables or CSV; returns the records."""
    from ckpt_probe.cli.console import console
    from ckpt_probe.report import to_csv
    from ckpt_probe.report.layers_table import grid_records, grid_table, grids_of

    held = list(records)
    grids = grids_of(held, metric)
    if csv:
        click.echo(to_csv(grid_records(grids)), nl=False)
        return held
    for grid in grids:
        screen = console(width=10_000 if wide else None)
        click.echo(f"{grid.split}: {grid.metric}")
        screen.print(grid_table(grid, None if wide else screen.width))
    return held


def file_format(path: Path | None, *, csv: bool, parquet: bool) -> str:
    """What a file of records holds, "json", "csv" or "parquet": as asked for, else by its suffix, else JSON Lines."""
    if parquet or csv:
        return "parquet" if parquet else "csv"
    named = {".csv": "csv", ".parquet": "parquet"}
    return named.get(path.suffix.lower(), "json") if path is not None else "json"


def require_writable(path: Path, form: str, *, overwrite: bool) -> None:
    """Raise UsageError where records cannot be written there in that format: before anything is computed for it."""
    from ckpt_probe.files import refuse_existing

    refuse_existing(path, overwrite=overwrite)
    if form == "parquet":
        from ckpt_probe.report.frames import require_parquet

        require_parquet(path, overwrite=overwrite)


def write_records(records: Iterable[Record], path: Path, form: str, *, overwrite: bool) -> None:
    """Write records into a file of a format that `file_format` names."""
    from ckpt_probe.files import write_text
    from ckpt_probe.report import to_csv, to_json_line, write_parquet

    held = list(records)
    if form == "parquet":
        write_parquet(held, path, overwrite=overwrite)
        return
    text = to_csv(held) if form == "csv" else "".join(to_json_line(record) + "\n" for record in held)
    write_text(path, text, overwrite=overwrite)


def write_spectra(readings: "Iterable[DetailedRecord]", path: Path, *, overwrite: bool) -> int:
    """Write eigenvalues into an .npz file, arrays named CHECKPOINT/SPLIT/LEVEL.NAME; returns how many there are.

    Of several layers all but the penultimate have their name before the level: CHECKPOINT/SPLIT/LAYER/LEVEL.NAME.
    """
    import numpy as np

    from ckpt_probe.files import replacing

    arrays = {
        f"{_place_of(reading.record)}/{name}": values
        for reading in readings
        for name, values in reading.spectra.items()
    }
    with replacing(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    return len(arrays)


def _place_of(record: Record) -> str:
    from ckpt_probe.dumps import PENULTIMATE

    layer = record.get("layer", PENULTIMATE)
    return "/".join([str(record["checkpoint"]), str(record["split"]), *([] if layer == PENULTIMATE else [str(layer)])])

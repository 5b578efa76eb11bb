"""Output of records: as a table, JSON Lines or CSV on standard output, or into a file."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckpt_probe.cli.command import Function
from ckpt_probe.cli.console import console, say, show
from ckpt_probe.errors import UsageError, printable

if TYPE_CHECKING:
    from rich.console import Console

    from ckpt_probe.moments.record import DetailedRecord

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Output:
    """Output of the records of a command: printed as a table, JSON Lines or CSV, and also written into a file.

    Attributes:
        json: Whether to print JSON Lines.
        csv: Whether to print CSV.
        wide: Whether a table has every column, however wide the terminal is.
        out: File to write, whose suffix names its format; None for none.
        overwrite: Whether to replace an existing file.
    """

    json: bool = False
    csv: bool = False
    wide: bool = False
    out: Path | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Raise UsageError for two formats, an existing file, or missing libraries of its format."""
        if self.json and self.csv:
            raise UsageError("--json and --csv exclude each other")
        if self.out is not None:
            require_writable(self.out, overwrite=self.overwrite)

    @property
    def is_table(self) -> bool:
        """Whether records are printed as a table."""
        return not (self.json or self.csv)

    def print(self, records: Iterable[Record], print_table: Callable[[list[Record]], None] | None = None) -> list[Any]:
        """Print records on standard output: JSON Lines one by one as they arrive, other formats at the end.

        Args:
            records: The records.
            print_table: Function that prints them as a table; None for the table of `analyze`.

        Returns:
            The records.
        """
        from ckpt_probe.reporting import to_csv, to_json_line

        if self.json:
            rows = []
            for record in records:
                click.echo(printable(to_json_line(record)))
                rows.append(record)
            return rows
        rows = list(records)
        if self.csv:
            click.echo(to_csv(rows), nl=False)
        else:
            (print_table or self.print_table)(rows)
        return rows

    def print_table(self, records: list[Record]) -> None:
        """Print records as a table with footnotes."""
        from ckpt_probe.reporting import footnotes, records_table

        screen = self.screen
        screen.print(records_table(records, width=self.table_width))
        for note in footnotes(records):
            show(note)

    @property
    def screen(self) -> "Console":
        """Console for tables, wide enough for every column if `wide` is set."""
        return console(width=10_000 if self.wide else None)

    @property
    def table_width(self) -> int | None:
        """Number of characters to which a table is fitted; None for a table of any width."""
        return None if self.wide else self.screen.width

    def write(self, records: Iterable[Record], noun: str = "records") -> None:
        """Write records into the file, if there is one, in the format that its suffix names."""
        if self.out is None:
            return
        from ckpt_probe.files import write_text
        from ckpt_probe.reporting import to_csv, to_json_line, write_parquet

        rows, suffix = list(records), self.out.suffix.lower()
        if suffix == ".parquet":
            write_parquet(rows, self.out, overwrite=self.overwrite)
        else:
            text = to_csv(rows) if suffix == ".csv" else "".join(to_json_line(record) + "\n" for record in rows)
            write_text(self.out, text, overwrite=self.overwrite)
        say(f"{self.out}: {len(rows)} {noun}")


def takes_output(function: Function) -> Function:
    """Pass --json, --csv and --wide, and -o FILE with --overwrite, to a command as one argument, an `Output`."""

    @wraps(function)
    def command(**options: Any) -> Any:
        names = [field.name for field in fields(Output) if field.name in options]
        return function(output=Output(**{name: options.pop(name) for name in names}), **options)

    return command


def take_printing(options: dict[str, Any]) -> Output:
    """Remove --json, --csv and --wide from the options of a command whose results are a directory; return them."""
    return Output(**{name: options.pop(name) for name in ("json", "csv", "wide") if name in options})


def require_writable(path: Path, *, overwrite: bool) -> None:
    """Raise UsageError if the file exists, or the libraries of its format are missing; call this before computing."""
    from ckpt_probe.files import refuse_existing

    refuse_existing(path, overwrite=overwrite)
    if path.suffix.lower() == ".parquet":
        from ckpt_probe.reporting.formats import require_parquet

        require_parquet(path, overwrite=overwrite)


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

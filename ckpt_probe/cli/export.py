"""`ckpt-probe export`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckpt_probe.cli.plot import read_files, sources
from ckpt_probe.errors import UsageError

if TYPE_CHECKING:
    from ckpt_probe.analysis import Records

EXAMPLE = """\b
Examples: ckpt-probe export records.jsonl --tensorboard events
          ckpt-probe export plain=plain.jsonl decay=decay.jsonl --parquet both.parquet"""


@click.command("export", epilog=EXAMPLE)
@click.argument("records", nargs=-1, required=True, metavar="RECORDS...")
@click.option(
    "--tensorboard",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write event files for TensorBoard, one run per split and per file of RECORDS.",
)
@click.option(
    "--parquet",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write all records to one Parquet file; a column names the file if there are several.",
)
@click.option("--overwrite", is_flag=True, help="Replace existing output.")
def command(records: tuple[str, ...], tensorboard: Path | None, parquet: Path | None, overwrite: bool) -> None:
    """Convert records to the formats of other programs: TensorBoard event files, Parquet.

    RECORDS are files of JSON Lines and are named as for plot: NAME=FILE names one; NAME=FILE1,FILE2 are seeds of one
    condition. Nothing is sent anywhere.
    """
    if tensorboard is None and parquet is None:
        raise UsageError("export: choose an output: --tensorboard DIR, --parquet FILE, or both")

    from ckpt_probe.cli.console import bars, say
    from ckpt_probe.reporting import write_event_files, write_parquet

    series = _named(read_files(sources(records)))
    if tensorboard is not None:
        with bars() as progress:
            values, notes = write_event_files(series, tensorboard, overwrite=overwrite, progress=progress)
        for note in notes:
            say(note)
        say(f"{tensorboard}: {values} values; view them with: tensorboard --logdir {tensorboard}")
    if parquet is not None:
        rows = [
            {"condition": name, **record} if len(series) > 1 else record
            for name, group in series.items()
            for record in group
        ]
        say(f"{parquet}: {write_parquet(rows, parquet, overwrite=overwrite)} records")


def _named(conditions: "Mapping[str, Sequence[Records]]") -> "dict[str, Records]":
    """Return the records of each file by name: its condition, numbered if that has several files (seeds)."""
    return {
        label if len(files) == 1 else f"{label}-{number}": group
        for label, files in conditions.items()
        for number, group in enumerate(files)
    }

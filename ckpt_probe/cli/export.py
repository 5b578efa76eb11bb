"""`ckpt-probe export`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckpt_probe.cli.command import Command, option, option_group
from ckpt_probe.cli.options import PATH, out_option, overwrite_option
from ckpt_probe.cli.output import require_writable, write_records
from ckpt_probe.cli.plot import read_files, sources
from ckpt_probe.errors import UsageError
from ckpt_probe.groups import seed_names

if TYPE_CHECKING:
    from ckpt_probe.analysis import Records

EXAMPLE = """\b
Examples: ckpt-probe export records.jsonl --tensorboard events
          ckpt-probe export plain=plain.jsonl decay=decay.jsonl -o both.parquet"""


@click.command("export", cls=Command, epilog=EXAMPLE)
@click.argument("records", nargs=-1, required=True, metavar="RECORDS...")
@option_group(
    "Output",
    option(
        "--tensorboard", "DIR", "Write event files for TensorBoard, one run per split and per file of RECORDS.", PATH
    ),
    out_option("Write all records to this file: Parquet or CSV by its suffix, else JSON Lines.", required=False),
    overwrite_option("Replace existing output."),
)
def command(records: tuple[str, ...], tensorboard: Path | None, out: Path | None, overwrite: bool) -> None:
    """Convert records to the formats of other programs: TensorBoard event files, Parquet, CSV.

    RECORDS are files of JSON Lines or dumps and are named as for plot: NAME=FILE names one; NAME=FILE1,FILE2 or a
    directory of runs are seeds of one group. If there are several, columns `group` and `seed` of the table name them.
    Nothing is sent anywhere.
    """
    if tensorboard is None and out is None:
        raise UsageError("export: choose an output: --tensorboard DIR, -o FILE.parquet, or both")
    if out is not None:
        require_writable(out, overwrite=overwrite)

    from ckpt_probe.cli.console import bars, say
    from ckpt_probe.reporting import write_event_files

    files = sources(records)
    groups = read_files(files)
    series = _named(groups)
    if tensorboard is not None:
        with bars() as progress:
            values, notes = write_event_files(series, tensorboard, overwrite=overwrite, progress=progress)
        for note in notes:
            say(note)
        say(f"{tensorboard}: {values} values; view them with: tensorboard --logdir {tensorboard}")
    if out is not None:
        rows = [*_labelled(groups, files)]
        write_records(rows, out, overwrite=overwrite)
        say(f"{out}: {len(rows)} records")


def _labelled(
    groups: "Mapping[str, Sequence[Records]]", files: Mapping[str, Sequence[Path]]
) -> "Iterator[Mapping[str, object]]":
    """Yield all records with group and seed, if there are several groups or seeds; those that have both keep them."""
    for name, runs in groups.items():
        seeds = seed_names(files[name]) if name in files and len(files[name]) == len(runs) > 1 else [None] * len(runs)
        for seed, records in zip(seeds, runs, strict=True):
            labels = {"group": name} if len(groups) > 1 or seed is not None else {}
            labels |= {} if seed is None else {"seed": seed}
            yield from ({**labels, **record} for record in records)


def _named(conditions: "Mapping[str, Sequence[Records]]") -> "dict[str, Records]":
    """Return the records of each file by name: its condition, numbered if that has several files (seeds)."""
    return {
        label if len(files) == 1 else f"{label}-{number}": group
        for label, files in conditions.items()
        for number, group in enumerate(files)
    }

"""`ckpt-probe export`."""

from pathlib import Path

import click

from ckpt_probe.cli.options import flag, option, option_group, out_option, verb
from ckpt_probe.cli.output import Output, bars, say, takes_output
from ckpt_probe.cli.values import PATH
from ckpt_probe.errors import UsageError

EXAMPLE = """\b
Examples: ckpt-probe export records.jsonl --tensorboard events
          ckpt-probe export plain=plain.jsonl decay=decay.jsonl -o both.parquet"""


@verb("export", EXAMPLE)
@click.argument("records", nargs=-1, required=True, metavar="RECORDS...")
@option_group(
    "Output",
    option(
        "--tensorboard", "DIR", "Write event files for TensorBoard, one run per split and per file of RECORDS.", PATH
    ),
    out_option("Write all records to this file: Parquet or CSV by its suffix, else JSON Lines.", required=False),
    flag("--overwrite", "Replace existing output."),
)
@takes_output
def command(records: tuple[str, ...], output: Output, tensorboard: Path | None) -> None:
    """Convert records to the formats of other programs: TensorBoard event files, Parquet, CSV.

    RECORDS are files of JSON Lines or dumps and are named as for plot: NAME=FILE names one; NAME=FILE1,FILE2 or a
    directory of runs are seeds of one group. If there are several, columns `group` and `seed` of the table name them.
    Nothing is sent anywhere.
    """
    if tensorboard is None and output.out is None:
        raise UsageError("export: choose an output: --tensorboard DIR, -o FILE.parquet, or both")

    from ckpt_probe.reporting import write_event_files
    from ckpt_probe.reporting.conditions import by_file, labelled, open_conditions, read_conditions

    files = open_conditions(records)
    with bars() as progress:
        conditions = read_conditions(files, progress)
    if tensorboard is not None:
        with bars() as progress:
            values, notes = write_event_files(
                by_file(conditions), tensorboard, overwrite=output.overwrite, progress=progress
            )
        for note in notes:
            say(note)
        say(f"{tensorboard}: {values} values; view them with: tensorboard --logdir {tensorboard}")
    output.write(labelled(conditions, files))

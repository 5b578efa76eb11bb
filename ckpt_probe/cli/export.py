"""`ckpt-probe export`."""

from pathlib import Path

import click

from ckpt_probe.cli.flags import PATH
from ckpt_probe.cli.options import flag, option, option_group, out_option, verb
from ckpt_probe.cli.output import Output, bars, takes_output

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
    from ckpt_probe.reporting.conditions import export

    with bars() as progress:
        export(records, output.out, tensorboard=tensorboard, overwrite=output.overwrite, progress=progress)

"""`ckpt-probe examples`."""

from collections.abc import Sequence
from typing import Any

import click

from ckpt_probe.cli.flags import POSITIVE
from ckpt_probe.cli.options import option, option_group, setting_group, verb
from ckpt_probe.cli.output import Output, bars, show, takes_output

EXAMPLE = """\b
Examples: ckpt-probe examples dumps/digits --split test
          ckpt-probe examples dumps/a dumps/b --by run
          ckpt-probe examples dumps/photos --data imagefolder:photos -o examples.csv"""


@verb("examples", EXAMPLE)
@click.argument("dumps", nargs=-1, required=True, metavar="DUMPS...")
@option_group(
    "Examples",
    option(
        "--by",
        "KIND",
        "A record of each example, class, step (compared with the one before) or pair of runs (at their ends).",
        ("example", "class", "step", "run"),
        "example",
    ),
    "splits",
)
@option_group(
    "Output",
    "json csv wide out overwrite",
)
@setting_group(
    "--set",
    "Less common settings",
    option("rows", "N", "Examples in the table of each split; files, --json and --csv have all.", POSITIVE, 20),
    option("data", "NAME", "Data of the dumps, to name examples if the dumps hold no names."),
    "data_arguments",
)
@takes_output
def command(dumps: tuple[str, ...], output: Output, by: str, rows: int, **options: Any) -> None:
    """List which examples were learned when, and how often they were forgotten; needs neither model nor data.

    DUMPS are directories of dumps of the same data, or of groups of runs (one directory of dumps for each seed);
    NAME=DIR names one, and NAME='GLOB' is a group. An example is first learned at the step from which on
    it is always predicted correctly, and forgotten each time that it is predicted correctly at a checkpoint and wrongly
    at the next. The table shows the worst examples first.
    """
    from ckpt_probe.predictions import examples

    with bars() as progress:
        records = examples(dumps, by=by, progress=progress, **options)
        listed = output.print(records, lambda of_table: _print_table(of_table, by, rows, output))
    output.write(listed)


def _print_table(records: Sequence[Any], by: str, rows: int, output: Output) -> None:
    from ckpt_probe.reporting.table import examples_table, first_of_each, footnotes, summaries

    in_table = first_of_each(records, rows) if by == "example" else records
    for line in summaries(records) if by == "example" else ():
        click.echo(line)
    output.screen.print(examples_table(in_table, by))
    if len(in_table) < len(records):
        click.echo(f"{len(records) - len(in_table):,} more examples with --rows N, --json, --csv or -o FILE")
    for note in footnotes(in_table) if by != "example" else ():
        show(note)

"""`ckpt-probe examples`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ckpt_probe.cli.command import Command, option, option_group
from ckpt_probe.cli.options import (
    CSV,
    JSON,
    POSITIVE,
    SPLIT,
    WIDE,
    out_option,
    overwrite_option,
    parse_arguments,
    require_one_format,
)
from ckpt_probe.cli.output import require_writable

EXAMPLE = """\b
Examples: ckpt-probe examples dumps/digits --split test
          ckpt-probe examples dumps/a dumps/b --by run
          ckpt-probe examples dumps/photos --data imagefolder:photos -o examples.csv"""


@click.command("examples", cls=Command, epilog=EXAMPLE)
@click.argument("dumps", nargs=-1, required=True, metavar="DUMPS...")
@option_group(
    "Examples",
    option(
        "--by",
        "KIND",
        "A record of each example, class, step (compared with the one before) or pair of runs (at their ends).",
        click.Choice(["example", "class", "step", "run"]),
        "example",
    ),
    SPLIT,
    option("--data", "NAME", "Data of the dumps, as for extract, to name examples if the dumps hold no names."),
    option(
        "--data-argument data_arguments",
        "NAME=VALUE",
        "Argument of the data, or a JSON object of several; repeatable.",
        multiple=True,
        callback=parse_arguments,
    ),
)
@option_group(
    "Output",
    option("--rows", "N", "Examples in the table of each split; files, --json and --csv have all.", POSITIVE, 20),
    JSON,
    CSV,
    WIDE,
    out_option("Also write to this file: .csv, .parquet, else JSON Lines.", required=False),
    overwrite_option("Replace the file if it exists."),
)
def command(
    dumps: tuple[str, ...],
    by: str,
    rows: int,
    json: bool,
    csv: bool,
    wide: bool,
    out: Path | None,
    overwrite: bool,
    **options: Any,
) -> None:
    """List which examples were learned when, and how often they were forgotten; needs neither model nor data.

    DUMPS are directories of dumps of the same data, or of groups of runs (one directory of dumps for each seed);
    NAME=DIR names one, and NAME='GLOB' is a group. An example is first learned at the step from which on
    it is always predicted correctly, and forgotten each time that it is predicted correctly at a checkpoint and wrongly
    at the next. The table shows the worst examples first.
    """
    require_one_format(json=json, csv=csv)
    if out is not None:
        require_writable(out, overwrite=overwrite)

    from ckpt_probe.cli.console import bars, say
    from ckpt_probe.cli.output import print_records, write_records
    from ckpt_probe.predictions import examples

    with bars() as progress:
        records = examples(dumps, by=by, progress=progress, **options)
        rows_of_all = print_records(records, json=json, csv=csv, wide=wide) if json or csv else list(records)
    if not (json or csv):
        _print_table(rows_of_all, by, rows, wide=wide)
    if out is not None:
        write_records(rows_of_all, out, overwrite=overwrite)
        say(f"{out}: {len(rows_of_all)} records")


def _print_table(records: Sequence[Any], by: str, rows: int, *, wide: bool) -> None:
    from ckpt_probe.cli.console import console
    from ckpt_probe.cli.flags import flags_for_keywords
    from ckpt_probe.errors import printable
    from ckpt_probe.reporting import footnotes
    from ckpt_probe.reporting.examples_table import examples_table, first_of_each, summaries

    in_table = first_of_each(records, rows) if by == "example" else list(records)
    for line in summaries(records) if by == "example" else ():
        click.echo(line)
    console(width=10_000 if wide else None).print(examples_table(in_table, by))
    if by == "example":
        if len(in_table) < len(records):
            click.echo(f"{len(records) - len(in_table):,} more examples with --rows N, --json, --csv or -o FILE")
        return
    for note in footnotes(in_table):
        click.echo(printable(flags_for_keywords(note)))

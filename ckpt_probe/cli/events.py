"""`ckpt-probe events`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckpt_probe.cli.command import Command, option, option_group
from ckpt_probe.cli.flags import flags_for_keywords
from ckpt_probe.cli.options import CSV, JSON, PATH, out_option, overwrite_option, require_one_format
from ckpt_probe.cli.output import require_writable
from ckpt_probe.errors import UsageError, printable
from ckpt_probe.groups import named_paths

if TYPE_CHECKING:
    from ckpt_probe.findings import Findings

EXAMPLE = """\b
Examples: ckpt-probe events records.jsonl --split test
          ckpt-probe events --group plain=dumps/a --group decay=dumps/b --metric accuracy,mir"""


@click.command("events", cls=Command, epilog=EXAMPLE)
@click.argument("sources", nargs=-1, metavar="[RECORDS|DUMPS]...")
@option_group(
    "Series",
    option(
        "--group groups",
        "NAME=DIR",
        "Group of runs: a directory with a run per seed, or a pattern; repeatable.",
        multiple=True,
    ),
    option(
        "--metric metrics",
        "NAME,…",
        "Metrics to test, separated by commas; repeatable.",
        str,
        None,
        "all",
        multiple=True,
    ),
    option("--split splits", "NAME", "Split to use; repeatable.", str, None, "all", multiple=True),
    option("--level", "P", "Family-wise error over the intervals and metrics of a run.", float, 0.05),
)
@option_group(
    "Output",
    JSON,
    CSV,
    out_option("Also write the events to this file: .csv, .parquet, else JSON Lines.", required=False),
    option("--figure", "FILE", "Also draw intervals and metrics into this .svg, .png or .pdf file.", PATH),
    overwrite_option("Replace existing files."),
)
def command(
    sources: tuple[str, ...],
    groups: tuple[str, ...],
    metrics: tuple[str, ...],
    splits: tuple[str, ...],
    level: float,
    json: bool,
    csv: bool,
    out: Path | None,
    figure: Path | None,
    overwrite: bool,
) -> None:
    """Find when metrics change: intervals of steps with a change, onset and end, and the order of onsets.

    RECORDS are files of records of any command or probe, or CSV files with a column step; DUMPS are analyzed. Prints
    one row per event. Each interval contains a change of level or slope of a trend that is otherwise linear in log
    step, with one error level for all. Runs with fewer than 12 checkpoints have no events, groups with fewer than 6
    seeds no order over seeds.
    """
    require_one_format(json=json, csv=csv)
    for path in (out, figure):
        if path is not None:
            require_writable(path, overwrite=overwrite)
    names = [name.strip() for text in metrics for name in text.split(",") if name.strip()]

    from ckpt_probe.cli.console import bars, say
    from ckpt_probe.cli.output import write_records
    from ckpt_probe.findings import events

    named = {name: paths for name, paths in map(named_paths, groups) if name is not None}
    if len(named) < len(groups):
        raise UsageError("--group: expected NAME=DIR, each with another name")
    with bars() as progress:
        findings = events(sources, groups=named, metrics=names, splits=splits, level=level, progress=progress)
    _print(findings, json=json, csv=csv)
    if out is not None:
        write_records(findings, out, overwrite=overwrite)
        say(f"{out}: {len(findings)} events")
    if figure is not None:
        from ckpt_probe.reporting.figures.events_figure import draw_events

        draw_events(findings, figure, overwrite=overwrite)
        say(f"{figure}: {len(findings)} events")


def _print(findings: "Findings", *, json: bool, csv: bool) -> None:
    from ckpt_probe.cli.console import console, say
    from ckpt_probe.findings.sentences import order_sentence
    from ckpt_probe.reporting import to_csv, to_json_line
    from ckpt_probe.reporting.findings import findings_drawing, findings_footnotes, findings_table

    notes = [flags_for_keywords(note) for note in findings_footnotes(findings)]
    if json or csv:
        if csv:
            click.echo(to_csv(findings), nl=False)
        for event in findings if json else ():
            click.echo(printable(to_json_line(event)))
        for note in notes:
            say(note)
        return
    screen = console()
    screen.print(findings_table(findings))
    for note in notes:
        click.echo(printable(note))
    for line in findings_drawing(findings, screen.width):
        click.echo(printable(line))
    of_runs = len({(limit["group"], limit["seed"]) for limit in findings.limits}) > 1
    for order in findings.orders:
        click.echo(printable(order_sentence(order, of_runs=of_runs)))

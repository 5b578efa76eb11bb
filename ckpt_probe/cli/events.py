"""`ckpt-probe events`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckpt_probe.cli.flags import PATH
from ckpt_probe.cli.options import flag, metric_option, option, option_group, out_option, setting_group, verb
from ckpt_probe.cli.output import Output, bars, console, say, show, takes_output
from ckpt_probe.errors import UsageError, printable
from ckpt_probe.groups import named_paths

if TYPE_CHECKING:
    from ckpt_probe.findings import Findings

EXAMPLE = """\b
Examples: ckpt-probe events records.jsonl --split test
          ckpt-probe events --group plain=dumps/a --group decay=dumps/b --metric accuracy,mir"""


@verb("events", EXAMPLE)
@click.argument("sources", nargs=-1, metavar="[RECORDS|DUMPS]...")
@option_group(
    "Series",
    option(
        "--group groups",
        "NAME=DIR",
        "Group of runs: a directory with a run per seed, or a pattern; repeatable.",
        multiple=True,
    ),
    metric_option("Metrics to test, separated by commas; repeatable.", None, "all"),
    "splits",
)
@option_group(
    "Output",
    "json csv",
    out_option("Also write the events to this file: .csv, .parquet, else JSON Lines.", required=False),
    flag("--overwrite", "Replace existing files."),
)
@setting_group(
    "--set",
    "Less common settings",
    option("level", "P", "Family-wise error over the intervals and metrics of a run.", float, 0.05),
    option("figure", "FILE", "Also draw intervals and metrics into this .svg, .png or .pdf file.", PATH),
)
@takes_output
def command(
    sources: tuple[str, ...], output: Output, groups: tuple[str, ...], figure: Path | None, **options: Any
) -> None:
    """Find when metrics change: intervals of steps with a change, onset and end, and the order of onsets.

    RECORDS are files of records of any command or probe, or CSV files with a column step; DUMPS are analyzed. Prints
    one row per event. Each interval contains a change of level or slope of a trend that is otherwise linear in log
    step, with one error level for all. Runs with fewer than 12 checkpoints have no events, groups with fewer than 6
    seeds no order over seeds.
    """
    from ckpt_probe.findings import events
    from ckpt_probe.reporting.findings import findings_footnotes, findings_table
    from ckpt_probe.reporting.line_figure import require_drawable

    if figure is not None:
        require_drawable(figure, overwrite=output.overwrite)
    named = {name: paths for name, paths in map(named_paths, groups) if name is not None}
    if len(named) < len(groups):
        raise UsageError("--group: expected NAME=DIR, each with another name")
    with bars() as progress:
        findings = events(sources, groups=named, progress=progress, **options)
    output.print(findings, lambda _: console().print(findings_table(findings)))
    for note in findings_footnotes(findings):
        (show if output.is_table else say)(note)
    if output.is_table:
        _print_drawing(findings)
    output.write(findings, "events")
    if figure is not None:
        from ckpt_probe.reporting.figures import draw_events

        draw_events(findings, figure, overwrite=output.overwrite)
        say(f"{figure}: {len(findings)} events")


def _print_drawing(findings: "Findings") -> None:
    """Print the intervals on the axis of steps, and the order of onsets."""
    from ckpt_probe.findings.findings import order_sentence
    from ckpt_probe.reporting.findings import findings_drawing

    of_runs = len({(limit["group"], limit["seed"]) for limit in findings.limits}) > 1
    orders = [order_sentence(order, of_runs=of_runs) for order in findings.orders]
    for line in [*findings_drawing(findings, console().width), *orders]:
        click.echo(printable(line))

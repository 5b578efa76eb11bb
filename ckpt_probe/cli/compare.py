"""`ckpt-probe compare`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckpt_probe.cli.command import Command, Setting, option, option_group, setting_group
from ckpt_probe.cli.flags import flags_for_keywords
from ckpt_probe.cli.options import CSV, JSON, PATH, WHOLE, Parsed, require_one_format
from ckpt_probe.errors import printable

if TYPE_CHECKING:
    from ckpt_probe.analysis import Comparison

EXAMPLE = """\b
Examples: ckpt-probe compare runs/plain runs/decay --metric accuracy,loss
          ckpt-probe compare dumps/plain dumps/decay --metric class.mir --split train --json"""


def parse_step(text: str) -> int | None:
    """Parse a training step; "last" gives None. Raise ValueError for other texts."""
    if text == "last":
        return None
    if not text.isascii() or not text.isdigit():
        raise ValueError(f'expected a training step or "last", found {text!r}')
    return int(text)


@click.command("compare", cls=Command, epilog=EXAMPLE)
@click.argument("groups", nargs=-1, required=True, type=PATH, metavar="GROUP GROUP...")
@option_group(
    "Comparison",
    option(
        "--metric metrics",
        "NAME,…",
        "Metrics to compare, separated by commas; repeatable.",
        str,
        ["accuracy"],
        multiple=True,
    ),
    option("--split", "NAME", "Split whose values are compared.", str, "test"),
    option(
        "--step",
        "N|last",
        "Training step to compare at, or the last step of each entry.",
        Parsed("N|last", parse_step),
        "last",
    ),
)
@setting_group(
    "--sampling",
    "Confidence interval",
    Setting(
        "method",
        "NAME",
        "bootstrap of the differences, or t: Student's interval, which assumes normal differences.",
        click.Choice(["bootstrap", "t"]),
        "bootstrap",
    ),
    Setting("confidence", "P", "Confidence level of the interval.", float, 0.95),
    Setting("resamples", "N", "Number of bootstrap resamples.", click.IntRange(min=100), 9999),
    Setting("seed", "N", "Seed of the bootstrap.", WHOLE, 0),
)
@option_group("Output", JSON, CSV)
def command(
    groups: tuple[Path, ...],
    metrics: tuple[str, ...],
    split: str,
    step: int | None,
    json: bool,
    csv: bool,
    **options: Any,
) -> None:
    """Compare groups of runs that differ only in their seed; the first GROUP is the baseline.

    A GROUP is a directory with one entry per seed: a run (its metrics.jsonl has loss and accuracy), a directory of
    dumps, which are analyzed, or a file NAME.jsonl written by analyze. Entries of the same name are paired. The verdict
    is "higher" or "lower" if the confidence interval of the mean paired difference excludes 0, else "inconclusive".
    """
    require_one_format(json=json, csv=csv)
    names = [name.strip() for text in metrics for name in text.split(",") if name.strip()]

    from ckpt_probe.analysis import compare
    from ckpt_probe.cli.console import bars

    with bars() as progress:
        comparisons = compare(groups, metrics=names, split=split, step=step, progress=progress, **options)
    _print(comparisons, json=json, csv=csv)


def _print(comparisons: "Sequence[Comparison]", *, json: bool, csv: bool) -> None:
    from dataclasses import asdict

    from ckpt_probe.cli.console import console
    from ckpt_probe.reporting import comparison_footnotes, comparison_table, to_csv, to_json_line

    records = [asdict(comparison) for comparison in comparisons]
    if csv:
        click.echo(to_csv(records), nl=False)
        return
    if json:
        for record in records:
            click.echo(printable(to_json_line(record)))
        return
    console().print(comparison_table(comparisons))
    for note in comparison_footnotes(comparisons):
        click.echo(printable(flags_for_keywords(note)))

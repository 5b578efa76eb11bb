"""`ckpt-probe compare`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckpt_probe.cli.flags import flags_for_keywords
from ckpt_probe.errors import UsageError, printable

if TYPE_CHECKING:
    from ckpt_probe.analysis import Comparison

EXAMPLE = """\b
Examples: ckpt-probe compare runs/plain runs/decay --metric accuracy,loss
          ckpt-probe compare dumps/plain dumps/decay --metric class.mir --split train --json"""


@click.command("compare", epilog=EXAMPLE)
@click.argument("groups", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="GROUP GROUP...")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    default=["accuracy"],
    show_default=True,
    help="Metrics to compare, separated by commas; repeatable.",
)
@click.option("--split", default="test", show_default=True, help="Split whose values are compared.")
@click.option(
    "--step",
    default="last",
    show_default=True,
    metavar="N|last",
    help="Training step to compare at, or the last step of each entry.",
)
@click.option("--confidence", type=float, default=0.95, show_default=True, help="Confidence level of the intervals.")
@click.option(
    "--interval",
    "method",
    type=click.Choice(["bootstrap", "t"]),
    default="bootstrap",
    show_default=True,
    help="Bootstrap of the differences, or Student's t interval, which assumes normal differences.",
)
@click.option(
    "--resamples", type=click.IntRange(min=100), default=9999, show_default=True, help="Number of bootstrap resamples."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the bootstrap.")
@click.option("--json", is_flag=True, help="Print JSON Lines, one comparison per line, instead of the table.")
@click.option("--csv", is_flag=True, help="Print comma-separated values instead of the table.")
def command(
    groups: tuple[Path, ...],
    metrics: tuple[str, ...],
    split: str,
    step: str,
    json: bool,
    csv: bool,
    **options: Any,
) -> None:
    """Compare groups of runs that differ only in their seed; the first GROUP is the baseline.

    A GROUP is a directory with one entry per seed: a run (its metrics.jsonl has loss and accuracy), a directory of
    dumps, which are analyzed, or a file NAME.jsonl written by analyze. Entries of the same name are paired. The verdict
    is "higher" or "lower" if the confidence interval of the mean paired difference excludes 0, else "inconclusive".
    """
    if json and csv:
        raise UsageError("--json and --csv exclude each other")
    chosen_step = _step(step)
    names = [name.strip() for text in metrics for name in text.split(",") if name.strip()]

    from ckpt_probe.analysis import compare
    from ckpt_probe.cli.console import bars

    with bars() as progress:
        comparisons = compare(groups, metrics=names, split=split, step=chosen_step, progress=progress, **options)
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


def _step(text: str) -> int | None:
    if text == "last":
        return None
    if not text.isascii() or not text.isdigit():
        raise UsageError(f'--step: expected a training step or "last", found {text!r}')
    return int(text)

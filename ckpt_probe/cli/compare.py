"""`ckpt-probe compare`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ckpt_probe.cli.flags import PATH, WHOLE, Parsed
from ckpt_probe.cli.options import metric_option, option, option_group, setting_group, verb
from ckpt_probe.cli.output import Output, bars, console, show, takes_output

EXAMPLE = """\b
Examples: ckpt-probe compare runs/plain runs/decay --metric accuracy,loss
          ckpt-probe compare dumps/plain dumps/decay --metric class.mir --split train --json"""


def parse_step(text: str) -> int | str | None:
    """Parse a training step or "all"; "last" gives None. Raise ValueError for other texts."""
    if text in ("last", "all"):
        return None if text == "last" else text
    if not text.isascii() or not text.isdigit():
        raise ValueError(f'expected a training step, "last" or "all", found {text!r}')
    return int(text)


@verb("compare", EXAMPLE)
@click.argument("groups", nargs=-1, required=True, type=PATH, metavar="GROUP GROUP...")
@option_group(
    "Comparison",
    metric_option("Metrics to compare, separated by commas; repeatable.", ["accuracy"]),
    option("--split", "NAME", "Split whose values are compared.", str, "test"),
    option(
        "--step",
        "N|last|all",
        "Training step to compare at, the last step of each entry, or every common step.",
        Parsed("N|last|all", parse_step),
        None,
        "last",
    ),
)
@setting_group(
    "--sampling",
    "Confidence interval",
    option(
        "method",
        "NAME",
        "bootstrap of the differences, or t: Student's interval, which assumes normal differences.",
        ("bootstrap", "t"),
        "bootstrap",
    ),
    option("confidence", "P", "Confidence level of the interval.", float, 0.95),
    option("resamples", "N", "Number of bootstrap resamples.", click.IntRange(min=100), 9999),
    option("seed", "N", "Seed of the bootstrap.", WHOLE, 0),
)
@option_group("Output", "json csv out overwrite")
@setting_group(
    "--set",
    "Less common settings",
    option("margin", "X", "Difference up to which groups are equivalent.", float, None, "5 % of the range"),
    option("at", "loss", "Compare at equal loss in place of a step.", ("loss",)),
)
@takes_output
def command(groups: tuple[Path, ...], output: Output, **options: Any) -> None:
    """Compare groups of runs that differ only in their seed; the first GROUP is the baseline.

    A GROUP is a directory with one entry per seed: a run (its metrics.jsonl has loss and accuracy), a directory of
    dumps, which are analyzed, or a file NAME.jsonl written by analyze; or NAME='GLOB' of such entries. A single GROUP
    may be the directory of all groups. Entries of the same name are paired. The verdict is different, equivalent
    (within --margin) or undecided, corrected for the number of metrics, groups and steps.
    """
    from ckpt_probe.analysis import compare
    from ckpt_probe.reporting.comparison import comparison_footnotes, comparison_table

    with bars() as progress:
        comparisons = compare(groups, progress=progress, **options)

    def print_table(_records: object) -> None:
        console().print(comparison_table(comparisons))
        for note in comparison_footnotes(comparisons):
            show(note)

    output.write(output.print(map(asdict, comparisons), print_table))

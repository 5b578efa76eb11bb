"""`ckpt-probe plot`."""

import math
import re
from pathlib import Path
from typing import Any

import click

from ckpt_probe.cli.options import option, option_group, out_option, setting_group, verb
from ckpt_probe.cli.output import bars, say
from ckpt_probe.errors import UsageError

EXAMPLE = """\b
Examples: ckpt-probe plot records.jsonl -o a.svg --metric class.mir --metric nc1.pinv --log x
          ckpt-probe plot plain='plain/*.jsonl' decay='decay/*.jsonl' -o b.svg --metric accuracy"""


@verb("plot", EXAMPLE)
@click.argument("records", nargs=-1, required=True, metavar="RECORDS...")
@option_group(
    "Figure",
    option(
        "--metric metrics",
        "NAME,…",
        "Metric to draw in a panel, or several separated by commas; repeat for more panels.",
        multiple=True,
        required=True,
    ),
    option("--split splits", "NAME", "Split to draw; repeatable.", str, None, "all", multiple=True),
)
@option_group(
    "Output", out_option("File for the figure; its suffix .svg, .png or .pdf decides the format."), "overwrite"
)
@setting_group(
    "--set",
    "Axes and labels",
    option(
        "x",
        "NAME",
        "Quantity on the x axis: step, alpha, sparsity or epoch.",
        str,
        None,
        "alpha if present, else step",
    ),
    option(
        "--log logarithmic",
        "x|y",
        "Logarithmic axis, x linear from 0 to the first positive value; repeatable.",
        ("x", "y"),
        multiple=True,
    ),
    option(
        "--mark marks", "X=N:LABEL", "Vertical line with a label, such as step=1200:prune; repeatable.", multiple=True
    ),
    option("title", "TEXT", "Title above the figure."),
)
def command(records: tuple[str, ...], out: Path, metrics: tuple[str, ...], **options: Any) -> None:
    """Draw metrics against the training step, the position on a path, sparsity or epoch.

    RECORDS are files of records (JSON Lines, .csv, .parquet): from analyze -o, points.jsonl of a path, barriers.jsonl,
    metrics.jsonl of a run; or dumps, which are analyzed. Each becomes one line in the figure; NAME=FILE gives it a
    name. NAME=FILE1,FILE2, NAME='GLOB' or a directory of runs is one group with several seeds, drawn as their mean with
    a band from the lowest to the highest value. The training split is solid, the test split dashed, the value at
    collapse dotted.
    """
    from ckpt_probe.reporting.conditions import conditions_of
    from ckpt_probe.reporting.line_figure import plot
    from ckpt_probe.reporting.plots.curves import axis_of, panels_of
    from ckpt_probe.reporting.plots.description import Mark

    panels = panels_of(metrics)
    with bars() as progress:
        series, _ = conditions_of(records, progress)
    x = options.pop("x") or axis_of([record for runs in series.values() for group in runs for record in group])
    marks, logarithmic = [Mark(*_mark(text, x)) for text in options.pop("marks")], options.pop("logarithmic")
    axes = {"x": x, "log_x": "x" in logarithmic, "log_y": "y" in logarithmic}
    for note in plot(series, out, metrics=panels, marks=marks, **axes, **options):
        say(note)
    say(f"{out}: {len(panels)} panels of {sum(len(files) for files in series.values())} files")


def _mark(text: str, axis: str) -> tuple[float, str]:
    name, _, rest = text.partition("=")
    position, _, label = rest.partition(":")
    if not re.fullmatch(r"-?\d+\.?\d*(e-?\d+)?", position.strip()) or math.isinf(float(position)):
        raise UsageError(f"--mark: expected a mark such as {axis}=1200:label, found {text!r}")
    if name.strip() != axis:
        raise UsageError(f"--mark: {text!r} gives a value of {name.strip()}, but the x axis is {axis}")
    return float(position), label

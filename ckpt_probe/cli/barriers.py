"""`ckpt-probe barriers`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ckpt_probe.cli.command import Command, Setting, option_group, setting_group
from ckpt_probe.cli.console import bars, say, show
from ckpt_probe.cli.interpolate import (
    ERRORS,
    METHODS_TEXT,
    PATH_SETTINGS,
    POINT_COUNT,
    SHAPES_TEXT,
    excess,
    path_keywords,
)
from ckpt_probe.cli.options import (
    CSV,
    JSON,
    MODEL_SETTINGS,
    PATH,
    out_option,
    overwrite_option,
    subject_options,
)
from ckpt_probe.cli.output import take_printing
from ckpt_probe.paths.options import METHODS, SHAPES

SHAPE_SETTING = Setting("path", "SHAPE", f"{SHAPES_TEXT}.", click.Choice(SHAPES), "linear")
ALIGN_SETTING = Setting("align", "HOW", f"{METHODS_TEXT}.", click.Choice(METHODS))
EXAMPLE = """\b
Examples: ckpt-probe barriers runs/a runs/b -o barriers/ab --points 5
          ckpt-probe barriers runs/a -o barriers/a --split test"""


@click.command("barriers", cls=Command, epilog=EXAMPLE)
@click.argument("run", type=PATH)
@click.argument("other", type=PATH, required=False)
@option_group("Paths", POINT_COUNT, ERRORS)
@subject_options
@option_group(
    "Output",
    out_option("Directory for the results.", "DIR"),
    overwrite_option("Replace existing results."),
    JSON,
    CSV,
)
@setting_group("--set", "Less common settings", SHAPE_SETTING, ALIGN_SETTING, *PATH_SETTINGS, *MODEL_SETTINGS)
def command(run: Path, other: Path | None, out: Path, **options: Any) -> None:
    """Compute the barriers in loss and error between checkpoints, by training step.

    With two runs RUN and OTHER, their checkpoints of equal steps are the ends of the paths; with RUN alone, its
    consecutive checkpoints. Every path is evaluated as interpolate does, into a directory OUT/NAME; the barriers are
    in OUT/barriers.jsonl. The same command continues after an interruption.
    """
    output, keywords = take_printing(options), path_keywords(options)

    from ckpt_probe.paths import barriers

    with bars() as progress:
        records = barriers(run, other, out=out, progress=progress, **keywords)
    output.print(records, _print_lines)
    say(f"{out}: {len(records)} barriers")


def _print_lines(records: Sequence[Mapping[str, Any]]) -> None:
    for record in records:
        step = str(record["step"]) + (f" to {record['to_step']}" if "to_step" in record else "")
        text = f"barrier in loss {excess(record, 'loss')}, in error {excess(record, 'error')}"
        show(f"step {step}  {record['split']}: {text}")

"""`ckpt-probe barriers`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ckpt_probe.cli.flags import PATH
from ckpt_probe.cli.interpolate import ALIGN, PATH_SETTINGS, POINT_COUNT, SHAPE, excess, path_keywords
from ckpt_probe.cli.options import (
    FORWARD_SETTINGS,
    flag,
    option_group,
    out_option,
    setting_group,
    subject_options,
    verb,
)
from ckpt_probe.cli.output import bars, say, show, take_printing

EXAMPLE = """\b
Examples: ckpt-probe barriers runs/a runs/b -o barriers/ab --points 5
          ckpt-probe barriers runs/a -o barriers/a --split test"""


@verb("barriers", EXAMPLE)
@click.argument("run", type=PATH)
@click.argument("other", type=PATH, required=False)
@option_group("Paths", POINT_COUNT)
@subject_options
@option_group(
    "Output",
    out_option("Directory for the results.", "DIR"),
    flag("--overwrite", "Replace existing results."),
    "json csv",
)
@setting_group("--set", "Less common settings", SHAPE, ALIGN, *PATH_SETTINGS, FORWARD_SETTINGS)
def command(run: Path, other: Path | None, out: Path, **options: Any) -> None:
    """Compute barriers in loss and error between checkpoints, by step.

    With two runs RUN and OTHER, their checkpoints of equal steps are the ends of the paths; with RUN alone, its
    consecutive checkpoints. Paths are evaluated as by interpolate, into OUT/NAME; the barriers are in
    OUT/barriers.jsonl. Repeat the command to continue after an interruption.
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

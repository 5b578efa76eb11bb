"""`ckpt-probe weights`."""

from pathlib import Path
from typing import Any

import click

from ckpt_probe.cli.analyze import RENYI
from ckpt_probe.cli.command import Command, option_group, setting_group
from ckpt_probe.cli.options import (
    CACHE,
    CHECKPOINT_SETTINGS,
    CLASSIFIER,
    CSV,
    JSON,
    PATH,
    WIDE,
    out_option,
    overwrite_option,
    require_one_format,
)
from ckpt_probe.cli.output import require_writable


@click.command("weights", cls=Command, epilog="Example: ckpt-probe weights runs/digits --csv")
@click.argument("checkpoints", type=PATH)
@option_group("Metrics", RENYI)
@option_group(
    "Output",
    JSON,
    CSV,
    WIDE,
    out_option("Also write to this file: .csv, .parquet, else JSON Lines.", required=False),
    overwrite_option("Replace the file if it exists."),
)
@setting_group("--set", "Less common settings", CLASSIFIER, *CHECKPOINT_SETTINGS, CACHE)
def command(
    checkpoints: Path,
    json: bool,
    csv: bool,
    wide: bool,
    orders: tuple[float, ...] | None,
    out: Path | None,
    overwrite: bool,
    **options: Any,
) -> None:
    """Compute the metrics of the classifier weights of checkpoints; needs neither model nor data.

    CHECKPOINTS is the directory of a run, a directory of checkpoints of any format that inspect opens, or one
    checkpoint. Prints one row per checkpoint, in the order of the training steps, and the values at neural collapse.
    """
    require_one_format(json=json, csv=csv)
    if out is not None:
        require_writable(out, overwrite=overwrite)

    from ckpt_probe.analysis.weights import weights
    from ckpt_probe.cli.console import bars, say
    from ckpt_probe.cli.output import print_records, write_records

    with bars() as progress:
        results = weights(checkpoints, orders=orders or (), progress=progress, **options)
        records = print_records(results, json=json, csv=csv, wide=wide)
    if out is not None:
        write_records(records, out, overwrite=overwrite)
        say(f"{out}: {len(records)} records")

"""`ckpt-probe weights`."""

from typing import Any

import click

from ckpt_probe.cli.analyze import RENYI
from ckpt_probe.cli.command import Command, Setting, flag, option, option_group, setting_group
from ckpt_probe.cli.console import bars
from ckpt_probe.cli.options import (
    CACHE,
    CHECKPOINT_SETTINGS,
    CLASSIFIER,
    CSV,
    EVERY,
    FILE_OF_RECORDS,
    JSON,
    WHOLE,
    WIDE,
    WORKERS,
    require_follow,
)
from ckpt_probe.cli.output import Output, takes_output

LEVELS = ("network", "block", "tensor")


@click.command("weights", cls=Command, epilog="Example: ckpt-probe weights runs/digits --by block --csv")
@click.argument("checkpoints", nargs=-1, required=True, metavar="CHECKPOINTS...")
@option_group(
    "Contents",
    option("--only", "PART,…", "audit, motion, spectra and classifier.", str, None, "all"),
    option("--by", "LEVEL", "One row per network, block or tensor.", click.Choice(LEVELS), "network"),
    RENYI,
    WORKERS,
)
@option_group(
    "Output",
    JSON,
    CSV,
    WIDE,
    *FILE_OF_RECORDS,
    flag("--follow", "Wait for new checkpoints of a training run; end with Ctrl-C."),
)
@setting_group(
    "--set",
    "Less common settings",
    CLASSIFIER,
    *CHECKPOINT_SETTINGS,
    Setting("sketch", "BOOL", "Distances from random projections of each checkpoint.", bool, None, "above 128 GiB"),
    Setting("bootstrap", "N", "Synthetic spectra for the goodness of fit of each tail.", WHOLE, 0),
    CACHE,
    EVERY,
    Setting("until", "STEP", "With --follow: last training step to wait for.", WHOLE),
)
@takes_output
def command(
    checkpoints: tuple[str, ...], output: Output, follow: bool, orders: tuple[float, ...] | None, **options: Any
) -> None:
    """Audit the weights of a series, and measure their motion and spectra; needs neither model nor data.

    CHECKPOINTS is the directory of a run, a directory of checkpoints of any format that inspect opens, or one
    checkpoint; or several runs: their directories, a directory of runs or of groups of runs, or NAME='GLOB'. The audit
    names checkpoints that were copied, exchanged or damaged, and prints its verdict at the end.
    """
    require_follow(follow, "until", "every")

    from ckpt_probe.trajectories import weights

    with bars() as progress:
        results = weights(checkpoints, orders=orders or (), follow=follow, progress=progress, **options)
        records = output.print(results)
    output.write(records)

"""`ckpt-probe weights`."""

from typing import Any

import click

from ckpt_probe.cli.flags import WHOLE, require_used
from ckpt_probe.cli.options import option, option_group, setting_group, verb
from ckpt_probe.cli.output import Output, bars, takes_output

LEVELS = ("network", "block", "tensor")


@verb("weights", "Example: ckpt-probe weights runs/digits --by block --csv")
@click.argument("checkpoints", nargs=-1, required=True, metavar="CHECKPOINTS...")
@option_group(
    "Contents",
    option("--only", "PART,…", "audit, motion, spectra and classifier.", str, None, "all"),
    option("--by", "LEVEL", "One row per network, block or tensor.", click.Choice(LEVELS), "network"),
    "workers",
)
@option_group("Output", "json csv wide out overwrite follow")
@setting_group(
    "--set",
    "Less common settings",
    "orders classifier state_key base",
    option("sketch", "BOOL", "Distances from random projections of each checkpoint.", bool, None, "above 128 GiB"),
    option("bootstrap", "N", "Synthetic spectra for the goodness of fit of each tail.", WHOLE, 0),
    "cache every",
    option("until", "STEP", "With --follow: last training step to wait for.", WHOLE),
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
    require_used(follow, "--follow", "until", "every")

    from ckpt_probe.trajectories import weights

    with bars() as progress:
        results = weights(checkpoints, orders=orders or (), follow=follow, progress=progress, **options)
        records = output.print(results)
    output.write(records)

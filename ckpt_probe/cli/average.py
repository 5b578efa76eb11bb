"""`ckpt-probe average`."""

from pathlib import Path
from typing import Any

import click

from ckpt_probe.cli.flags import NUMBERS, PATH
from ckpt_probe.cli.options import flag, option, option_group, out_option, setting_group, verb
from ckpt_probe.cli.output import bars, say


@verb("average", "Example: ckpt-probe average A.safetensors B.safetensors --weights 0.7,0.3 -o soup.safetensors")
@click.argument("checkpoints", nargs=-1, required=True, type=PATH)
@option_group(
    "Average",
    option(
        "--weights",
        "N,…",
        "One weight per checkpoint; they are not normalised.",
        NUMBERS,
        None,
        "equal weights that sum to 1",
    ),
    out_option("File to write; a directory if the checkpoints are sharded."),
    flag("--overwrite", "Replace an existing file or sharded checkpoint."),
)
@setting_group("--set", "Less common settings", "dtype state_key base")
def command(checkpoints: tuple[Path, ...], out: Path, **options: Any) -> None:
    """Write the weighted average of two or more CHECKPOINTS (a "model soup"); needs neither model nor data.

    Checkpoints may be of any format, and must all have the same tensors, whose names may differ by the prefix of a
    wrapper (`module.`). The result is safetensors and has the names of the first one, from which integer and boolean
    tensors are copied.
    """
    from ckpt_probe.merging import average

    with bars() as progress:
        summary = average(checkpoints, out, progress=progress, **options)
    copied = f"; {len(summary.copied)} integer tensors copied from {checkpoints[0].name}" if summary.copied else ""
    say(f"{out}: {summary.interpolated} tensors averaged over {len(checkpoints)} checkpoints{copied}")

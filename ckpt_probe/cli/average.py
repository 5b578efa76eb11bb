"""`ckpt-probe average`."""

from pathlib import Path

import click

from ckpt_probe.cli.options import numbers, source_options, writer_options


@click.command(
    "average", epilog="Example: ckpt-probe average A.safetensors B.safetensors --weights 0.7,0.3 -o soup.safetensors"
)
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="File to write; a directory if the checkpoints are sharded.",
)
@click.option(
    "--weights",
    metavar="W,…",
    show_default="equal weights that sum to 1",
    help="One weight per checkpoint; they are not normalised.",
)
@source_options
@writer_options
@click.option("--overwrite", is_flag=True, help="Replace an existing file or sharded checkpoint.")
def command(
    checkpoints: tuple[Path, ...],
    out: Path,
    weights: str | None,
    state_key: str | None,
    base: Path | None,
    dtype: str | None,
    threads: int | None,
    overwrite: bool,
) -> None:
    """Write the weighted average of two or more CHECKPOINTS (a "model soup"); needs neither model nor data.

    Checkpoints may be of any format, and must all have the same tensors, whose names may differ by the prefix of a
    wrapper (`module.`). The result is safetensors and has the names of the first one, from which integer and boolean
    tensors are copied.
    """
    from ckpt_probe.cli.console import bars, say
    from ckpt_probe.merging import average

    chosen = None if weights is None else numbers(weights, "--weights")
    with bars() as progress:
        summary = average(
            checkpoints,
            out,
            weights=chosen,
            state_key=state_key,
            base=base,
            dtype=dtype,
            threads=threads,
            overwrite=overwrite,
            progress=progress,
        )
    copied = f"; {len(summary.copied)} integer tensors copied from {checkpoints[0].name}" if summary.copied else ""
    say(f"{out}: {summary.interpolated} tensors averaged over {len(checkpoints)} checkpoints{copied}")

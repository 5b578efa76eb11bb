"""`ckpt-probe average`."""

from pathlib import Path

import click

from ckpt_probe.cli.options import numbers, writer_options


@click.command(
    "average", epilog="Example: ckpt-probe average A.safetensors B.safetensors --weights 0.7,0.3 -o soup.safetensors"
)
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="File, or directory for shards.")
@click.option("--weights", metavar="W,…", help="One weight a checkpoint, as given; equal shares if not named.")
@writer_options
@click.option("--overwrite", is_flag=True, help="Replace what exists.")
def command(
    checkpoints: tuple[Path, ...],
    out: Path,
    weights: str | None,
    dtype: str | None,
    threads: int | None,
    overwrite: bool,
) -> None:
    """Write the weighted average of two or more CHECKPOINTS (a "soup"); needs neither model nor data.

    Each is a safetensors file, or a directory of shards with their index; all have the same tensors. Whole numbers and
    booleans are those of the first.
    """
    from ckpt_probe.merging import average

    chosen = None if weights is None else numbers(weights, "--weights")
    summary = average(checkpoints, out, weights=chosen, dtype=dtype, threads=threads, overwrite=overwrite)
    copied = f"; {len(summary.copied)} of whole numbers copied from {checkpoints[0].name}" if summary.copied else ""
    click.echo(f"{out}: {summary.interpolated} tensors of {len(checkpoints)} checkpoints{copied}", err=True)

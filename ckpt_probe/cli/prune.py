"""`ckpt-probe prune`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckpt_probe.cli.options import explicit_options, numbers, source_options
from ckpt_probe.errors import printable

if TYPE_CHECKING:
    from ckpt_probe.training import PrunedLevel

EXAMPLE = """\b
Examples: ckpt-probe prune A.safetensors --sparsity 0,0.5,0.9 -o pruned/a
          ckpt-probe prune A.safetensors --sparsity 0.5,0.9 --retrain finetune.toml -o pruned/a-retrained"""


@click.command("prune", epilog=EXAMPLE)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="Directory for the pruned checkpoints."
)
@click.option(
    "--sparsity",
    "sparsities",
    default="0,0.2,0.5,0.8,0.9,0.95,0.98,0.99",
    show_default=True,
    metavar="S,…",
    help="Fractions of the weights to set to zero, each at least 0 and below 1.",
)
@click.option(
    "--scope",
    type=click.Choice(["global", "layer"]),
    default="global",
    show_default=True,
    help="Rank the weights across all tensors, or within each tensor.",
)
@click.option("--keep-classifier", is_flag=True, help="Do not prune the weights of the last linear layer.")
@click.option(
    "--classifier", metavar="NAME", help="Name of the last linear layer, if it cannot be found automatically."
)
@click.option(
    "--retrain",
    "config",
    type=click.Path(path_type=Path),
    metavar="CONFIG",
    help="Train after each sparsity with this TOML configuration, and prune the result further.",
)
@click.option("--device", default="auto", show_default=True, help="Device to retrain on: auto, cpu, cuda[:n] or mps.")
@source_options
@click.option("--seed", type=click.IntRange(min=0), help="Seed to use instead of the one in CONFIG.")
@click.option(
    "--overwrite", is_flag=True, help="Start over if the directory contains pruned checkpoints; they are removed."
)
def command(
    checkpoint: Path,
    out: Path,
    sparsities: str,
    scope: str,
    keep_classifier: bool,
    classifier: str | None,
    config: Path | None,
    device: str,
    seed: int | None,
    state_key: str | None,
    base: Path | None,
    overwrite: bool,
) -> None:
    """Set the smallest weights of CHECKPOINT to zero, at one or more sparsities.

    Writes OUT/sparsity-0.500.safetensors and so on, which extract and analyze read like any series of checkpoints. With
    --retrain each sparsity starts from the result of the previous one and is trained further, while pruned weights stay
    zero. Complete checkpoints are skipped, so the same command continues after an interruption.
    """
    from ckpt_probe.config import load_config
    from ckpt_probe.errors import UsageError

    if seed is not None and config is None:
        raise UsageError("--seed needs --retrain: pruning alone draws no random numbers")
    if config is None and "device" in explicit_options():
        raise UsageError("--device needs --retrain: pruning alone does not run the network")
    if classifier is not None and not keep_classifier:
        raise UsageError("--classifier needs --keep-classifier")
    shares = numbers(sparsities, "--sparsity")
    settings = None if config is None else load_config(config, seed=seed)

    from ckpt_probe.cli.console import bars, say
    from ckpt_probe.training import prune

    with bars() as progress:
        summary = prune(
            checkpoint,
            out,
            shares,
            scope=scope,
            keep_classifier=keep_classifier,
            classifier=classifier,
            retrain=settings,
            device=device,
            state_key=state_key,
            base=base,
            overwrite=overwrite,
            progress=progress,
        )
    for level in summary.levels:
        click.echo(printable(_description(level)))
    written = sum(level.written for level in summary.levels)
    say(f"{out}: {written} checkpoints written, {len(summary.levels) - written} already complete")


def _description(level: "PrunedLevel") -> str:
    accuracy = ", ".join(f"{split} {value:.4f}" for split, value in level.accuracy.items())
    zeros = f"sparsity {level.sparsity:g}: {level.zeros:,} of {level.weights:,} weights are zero"
    return f"{zeros}; accuracy {accuracy}" if accuracy else zeros

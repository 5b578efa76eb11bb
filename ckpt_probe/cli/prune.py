"""`ckpt-probe prune`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckpt_probe.cli.options import given_options, numbers

if TYPE_CHECKING:
    from ckpt_probe.training import PrunedLevel

EXAMPLE = """\b
Examples: ckpt-probe prune A.safetensors --sparsity 0,0.5,0.9 -o pruned/a
          ckpt-probe prune A.safetensors --sparsity 0.5,0.9 --retrain finetune.toml -o pruned/a-retrained"""


@click.command("prune", epilog=EXAMPLE)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Directory of the pruned series.")
@click.option(
    "--sparsity",
    "sparsities",
    default="0,0.2,0.5,0.8,0.9,0.95,0.98,0.99",
    show_default=True,
    metavar="S,…",
    help="Shares of the weights that become zero, each at least 0 and below 1.",
)
@click.option(
    "--scope",
    type=click.Choice(["global", "layer"]),
    default="global",
    show_default=True,
    help="Whether the smallest weights are found over all tensors together, or in each.",
)
@click.option("--keep-classifier", is_flag=True, help="Leave the last linear layer's weights as they are.")
@click.option("--classifier", metavar="NAME", help="Name of the last linear layer, where it is not to be found.")
@click.option(
    "--retrain",
    "config",
    type=click.Path(path_type=Path),
    metavar="CONFIG",
    help="Train as this TOML file says after each sparsity, and prune the result further.",
)
@click.option("--device", default="auto", show_default=True, help="Where to retrain: auto, cpu, cuda[:n] or mps.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed in place of the one in CONFIG.")
@click.option("--overwrite", is_flag=True, help="Start anew where the directory holds a pruned series.")
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
    overwrite: bool,
) -> None:
    """Set the smallest weights of CHECKPOINT to zero, at one or more sparsities.

    Writes OUT/sparsity-0.500.safetensors and so on, which extract and analyze take as any series. With --retrain each
    sparsity is pruned from the result of the one before and trained on, its zeros held. What is complete is not done
    again, so that the same command goes on after an interruption.
    """
    from ckpt_probe.config import load_config
    from ckpt_probe.errors import UsageError

    if seed is not None and config is None:
        raise UsageError("--seed goes with --retrain: pruning alone draws no random numbers")
    if config is None and "device" in given_options():
        raise UsageError("--device goes with --retrain: pruning alone runs no network")
    if classifier is not None and not keep_classifier:
        raise UsageError("--classifier goes with --keep-classifier")
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
            overwrite=overwrite,
            progress=progress,
        )
    for level in summary.levels:
        click.echo(_told(level))
    written = sum(level.written for level in summary.levels)
    say(f"{out}: {written} checkpoints written, {len(summary.levels) - written} complete already")


def _told(level: "PrunedLevel") -> str:
    accuracy = ", ".join(f"{split} {value:.4f}" for split, value in level.accuracy.items())
    zeros = f"sparsity {level.sparsity:g}: {level.zeros:,} of {level.weights:,} weights are zero"
    return f"{zeros}; accuracy {accuracy}" if accuracy else zeros

"""`ckpt-probe prune`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckpt_probe.cli.flags import NUMBERS, PATH, WHOLE, require_used
from ckpt_probe.cli.options import flag, option, option_group, out_option, setting_group, verb
from ckpt_probe.cli.output import bars, say
from ckpt_probe.errors import printable

if TYPE_CHECKING:
    from ckpt_probe.training import PrunedLevel

EXAMPLE = """\b
Examples: ckpt-probe prune A.safetensors --sparsity 0,0.5,0.9 -o pruned/a
          ckpt-probe prune A.safetensors --sparsity 0.5,0.9 --retrain finetune.toml -o pruned/b"""


@verb("prune", EXAMPLE)
@click.argument("checkpoint", type=PATH)
@option_group(
    "Pruning",
    option(
        "--sparsity sparsities",
        "N,…",
        "Fractions of the weights to set to zero, below 1.",
        NUMBERS,
        "0,0.2,0.5,0.8,0.9,0.95,0.98,0.99",
    ),
    flag("--keep-classifier", "Do not prune the weights of the last linear layer."),
    option(
        "--retrain",
        "CONFIG",
        "Train after each sparsity with this TOML configuration, and prune the result further.",
        PATH,
    ),
)
@option_group(
    "Output",
    out_option("Directory for the pruned checkpoints.", "DIR"),
    flag("--overwrite", "Start over if the directory contains pruned checkpoints; they are removed."),
)
@setting_group(
    "--set",
    "Less common settings",
    option("device", "NAME", "With --retrain: device to train on: auto, cpu, cuda[:n] or mps.", str, "auto"),
    option(
        "scope",
        "NAME",
        "Rank the weights across all tensors (global), or within each tensor (layer).",
        ("global", "layer"),
        "global",
    ),
    option("seed", "N", "With --retrain: seed to use instead of the one in CONFIG.", WHOLE),
    option("classifier", "NAME", "With --keep-classifier: name of the last linear layer."),
    "state_key base",
)
def command(checkpoint: Path, out: Path, retrain: Path | None, seed: int | None, **options: Any) -> None:
    """Set the smallest weights of CHECKPOINT to zero, at one or more sparsities.

    Writes OUT/sparsity-0.500.safetensors and so on, which extract and analyze read like any series of checkpoints. With
    --retrain each sparsity starts from the result of the previous one and is trained further, while pruned weights stay
    zero. Complete checkpoints are skipped, so the same command continues after an interruption.
    """
    needed = "--retrain: pruning alone neither draws random numbers nor runs the network"
    require_used(retrain is not None, needed, "seed", "device")
    require_used(options["keep_classifier"], "--keep-classifier", "classifier")

    from ckpt_probe.config import load_config
    from ckpt_probe.training import prune

    config = None if retrain is None else load_config(retrain, seed=seed)
    with bars() as progress:
        summary = prune(checkpoint, out, retrain=config, progress=progress, **options)
    for level in summary.levels:
        click.echo(printable(_description(level)))
    written = sum(level.written for level in summary.levels)
    say(f"{out}: {written} checkpoints written, {len(summary.levels) - written} already complete")


def _description(level: "PrunedLevel") -> str:
    accuracy = ", ".join(f"{split} {value:.4f}" for split, value in level.accuracy.items())
    zeros = f"sparsity {level.sparsity:g}: {level.zeros:,} of {level.weights:,} weights are zero"
    return f"{zeros}; accuracy {accuracy}" if accuracy else zeros

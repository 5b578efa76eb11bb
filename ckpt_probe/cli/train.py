"""`ckpt-probe train`."""

import re
from pathlib import Path
from typing import Any

import click

from ckpt_probe.cli.flags import PATH, Parsed
from ckpt_probe.cli.options import flag, option, option_group, out_option, verb
from ckpt_probe.cli.output import bars, say
from ckpt_probe.errors import UsageError

MOST_SEEDS = 1000


def parse_seeds(text: str) -> list[int]:
    """Parse seeds such as "0..4" or "0,2,5"; raise ValueError for any other text, and if a seed occurs twice."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,19})(?:\.\.(\d{1,19}))?\s*", part)
        last = int(match[2] or match[1]) if match else -1
        if match is None or last < int(match[1]):
            raise ValueError(f"expected seeds such as 0..4 or 0,2,5, found {text!r}")
        if last - int(match[1]) >= MOST_SEEDS:
            raise ValueError(f"at most {MOST_SEEDS} at a time, found {part.strip()!r}")
        seeds += range(int(match[1]), last + 1)
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"a seed occurs twice in {text!r}")
    return seeds


@verb("train", "Example: ckpt-probe train sample_configs/digits.toml -o runs/digits")
@click.argument("config", type=PATH)
@option_group(
    "Training",
    option(
        "--set overrides",
        "KEY=VALUE",
        "Override a value of CONFIG, such as seed=1 or loss.mir=0.01; repeatable.",
        multiple=True,
    ),
    option(
        "--seeds", "A..B", "Train one run per seed, such as 0..4 or 0,2,5, in OUT/seed-N.", Parsed("A..B", parse_seeds)
    ),
    "device",
)
@option_group(
    "Output",
    out_option("Directory to write the run to.", "DIR"),
    flag("--resume", "Continue an interrupted run."),
    flag("--overwrite", "Start over if the directory contains a run; its files are removed."),
)
def command(config: Path, out: Path, seeds: list[int] | None, overrides: tuple[str, ...], **options: Any) -> None:
    """Train the network that the TOML file CONFIG describes, and write its checkpoints.

    Writes OUT/checkpoints/step-NNNNNN.safetensors, OUT/metrics.jsonl, and the state from which --resume continues. The
    whole configuration is validated before training starts.
    """
    from ckpt_probe.config import load_config

    if options["resume"] and options["overwrite"]:
        raise UsageError("--resume and --overwrite exclude each other: continue the run, or start over")
    numbers = [None] if seeds is None else seeds
    directories = [out / f"seed-{number}" if seeds is not None else out for number in numbers]
    configs = [load_config(config, seed=number, overrides=overrides) for number in numbers]

    from ckpt_probe.training import require_free, train

    # Check the directories of all seeds before the first training, which may take hours.
    require_free(directories, configs, resume=options["resume"], overwrite=options["overwrite"])
    for settings, directory in zip(configs, directories, strict=True):
        with bars() as progress:
            summary = train(settings, directory, progress=progress, **options)
        if summary.first_step == summary.last_step:
            say(f"{directory}: already finished, at step {summary.last_step}; nothing to do")
        else:
            steps = f"trained steps {summary.first_step} to {summary.last_step}"
            say(f"{directory}: {steps}; {summary.checkpoints} checkpoints")

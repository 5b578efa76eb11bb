"""`ckpt-probe train`."""

import re
from pathlib import Path

import click

from ckpt_probe.errors import UsageError


@click.command("train", epilog="Example: ckpt-probe train sample_configs/digits.toml -o runs/digits")
@click.argument("config", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Directory to write the run to.")
@click.option("--resume", is_flag=True, help="Continue an interrupted run.")
@click.option("--overwrite", is_flag=True, help="Start over if the directory contains a run; its files are removed.")
@click.option("--device", default="auto", show_default=True, help="Device to run on: auto, cpu, cuda[:n] or mps.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed to use instead of the one in CONFIG.")
@click.option("--seeds", metavar="A..B", help="Train one run per seed, such as 0..4 or 0,2,5, in OUT/seed-N.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value of CONFIG; repeatable.")
def command(
    config: Path,
    out: Path,
    resume: bool,
    overwrite: bool,
    device: str,
    seed: int | None,
    seeds: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Train the network that the TOML file CONFIG describes, and write its checkpoints.

    Writes OUT/checkpoints/step-NNNNNN.safetensors, OUT/metrics.jsonl, and the state from which --resume continues. The
    whole configuration is validated before training starts.
    """
    from ckpt_probe.config import load_config

    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other: continue the run, or start over")
    if seed is not None and seeds is not None:
        raise UsageError("--seed and --seeds exclude each other")
    numbers = seed_numbers(seeds) if seeds is not None else [seed]
    directories = [out / f"seed-{number}" if seeds is not None else out for number in numbers]
    configs = [load_config(config, seed=number, overrides=overrides) for number in numbers]

    from ckpt_probe.cli.console import bars, say
    from ckpt_probe.training import require_free, train

    # Check the directories of all seeds before the first training, which may take hours.
    require_free(directories, configs, resume=resume, overwrite=overwrite)
    for settings, directory in zip(configs, directories, strict=True):
        with bars() as progress:
            summary = train(settings, directory, resume=resume, overwrite=overwrite, device=device, progress=progress)
        if summary.first_step == summary.last_step:
            say(f"{directory}: already finished, at step {summary.last_step}; nothing to do")
        else:
            steps = f"trained steps {summary.first_step} to {summary.last_step}"
            say(f"{directory}: {steps}; {summary.checkpoints} checkpoints")


MOST_SEEDS = 1000


def seed_numbers(text: str) -> list[int]:
    """Parse seeds such as "0..4" or "0,2,5"; raise UsageError for any other text, and if a seed occurs twice."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,19})(?:\.\.(\d{1,19}))?\s*", part)
        last = int(match[2] or match[1]) if match else -1
        if match is None or last < int(match[1]):
            raise UsageError(f"--seeds: expected seeds such as 0..4 or 0,2,5, found {text!r}")
        if last - int(match[1]) >= MOST_SEEDS:
            raise UsageError(f"--seeds: at most {MOST_SEEDS} at a time, found {part.strip()!r}")
        seeds += range(int(match[1]), last + 1)
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds: a seed occurs twice in {text!r}")
    return seeds

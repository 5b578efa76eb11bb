"""`ckpt-probe train`."""

from pathlib import Path

import click


@click.command("train", epilog="Example: ckpt-probe train sample_configs/digits.toml -o runs/digits")
@click.argument("config", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Directory of the run.")
@click.option("--resume", is_flag=True, help="Go on where an interrupted run stopped.")
@click.option("--overwrite", is_flag=True, help="Start anew where the directory holds a run.")
@click.option("--device", default="auto", show_default=True, help="Where to run: auto, cpu, cuda[:n] or mps.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed in place of the configuration's own.")
def command(config: Path, out: Path, resume: bool, overwrite: bool, device: str, seed: int | None) -> None:
    """Train the network that the TOML file CONFIG describes, and keep its checkpoints.

    Writes OUT/checkpoints/step-NNNNNN.safetensors, OUT/metrics.jsonl and what --resume needs. The configuration is
    checked whole before anything runs.
    """
    from ckpt_probe.config import load_config
    from ckpt_probe.errors import UsageError

    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other: go on with the run, or start it anew")
    settings = load_config(config, seed=seed)

    from ckpt_probe.cli.console import bars, say
    from ckpt_probe.training import train

    with bars() as progress:
        summary = train(settings, out, resume=resume, overwrite=overwrite, device=device, progress=progress)
    if summary.first_step == summary.last_step:
        say(f"{out}: finished already, at step {summary.last_step}; nothing to do")
        return
    say(f"{out}: trained steps {summary.first_step} to {summary.last_step}; {summary.checkpoints} checkpoints")

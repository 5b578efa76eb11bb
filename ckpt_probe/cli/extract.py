"""`ckpt-probe extract`."""

from pathlib import Path
from typing import Any

import click

from ckpt_probe.cli.options import (
    byte_count,
    explicit_options,
    layer_options,
    range_option,
    subject_options,
    take_arguments,
    worker_options,
)
from ckpt_probe.errors import UsageError


@click.command("extract", epilog="Example: ckpt-probe extract runs/digits -o dumps/digits")
@click.argument("checkpoints", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Directory for the dumps.")
@subject_options
@click.option("--unlabelled", is_flag=True, help="Ignore labels of the data.")
@click.option("--limit", type=click.IntRange(min=1), help="Use only this many samples of each split, the first ones.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float64", "float16", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Precision of the forward pass.",
)
@click.option(
    "--feature-dtype",
    type=click.Choice(["float32", "float64", "float16"]),
    default="float32",
    show_default=True,
    help="Precision of the stored features.",
)
@click.option(
    "--logits/--no-logits",
    "with_logits",
    default=True,
    show_default=True,
    help="Store logits; for a language model, the prediction and loss of each row are stored instead.",
)
@click.option(
    "--max-rows",
    type=click.IntRange(min=1),
    help="Store at most this many random rows of each split; class moments still use all rows.",
)
@click.option(
    "--rows-seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed for choosing the rows of --max-rows.",
)
@click.option(
    "--store",
    type=click.Choice(["features", "moments", "both"]),
    default="features",
    show_default=True,
    help="Store features, class moments instead (much smaller; no NC4, no analyze --centred), or both.",
)
@layer_options
@click.option(
    "--layer-store",
    type=click.Choice(["moments", "features", "both"]),
    default="moments",
    show_default=True,
    help="What to store for layers other than the penultimate: moments, features or both.",
)
@click.option(
    "--similarity-rows",
    type=click.IntRange(min=4),
    default=2048,
    show_default=True,
    help="With --layers: number of rows of every layer to store for ckpt-probe similarity.",
)
@click.option(
    "--similarity-seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of the random choice of --similarity-rows.",
)
@click.option(
    "--memory", default="2GiB", show_default=True, help="Memory limit for class moments, which take 8·C·D² bytes."
)
@worker_options
@range_option("If a split has more samples than N, let the workers share each checkpoint, in ranges of N samples.")
@click.option("--overwrite", is_flag=True, help="Replace existing dumps.")
@click.option("--follow", is_flag=True, help="Wait for new checkpoints of a training run; end with Ctrl-C.")
@click.option(
    "--until", type=click.IntRange(min=0), metavar="STEP", help="With --follow: last training step to extract."
)
@click.option(
    "--every",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    show_default="5",
    help="With --follow: seconds between two checks for new checkpoints.",
)
def command(
    checkpoints: Path,
    out: Path,
    follow: bool,
    until: int | None,
    every: float | None,
    **options: Any,
) -> None:
    """Run every checkpoint on the data once, and store penultimate features and classifier weights.

    CHECKPOINTS is the directory of a run, a directory of checkpoints of any format, or one checkpoint. Writes one HDF5
    file, a dump, per checkpoint: OUT/NAME.h5. Complete dumps are skipped, so the same command continues after an
    interruption; run twice at the same time, on one machine or several, the two share the checkpoints.
    """
    if not follow and (until is not None or every is not None):
        raise UsageError(f"--{'until' if until is not None else 'every'} needs --follow")
    options |= {**take_arguments(options), "memory": byte_count(options["memory"])}
    if follow:
        excluded = {"workers", "scheduler", "rows_per_task"} & explicit_options().keys()
        if excluded:
            spelling = min(explicit_options()[name] for name in excluded)
            raise UsageError(f"--follow extracts one checkpoint at a time: leave out {spelling}")
        for name in ("workers", "scheduler", "rows_per_task"):
            options.pop(name)
        _follow(checkpoints, out, {**options, "until": until, **({} if every is None else {"every": every})})
        return
    from ckpt_probe.cli.console import bars, say
    from ckpt_probe.extraction import extract_series

    with bars() as progress:
        summary = extract_series(checkpoints, out, progress=progress, **options)
    say(_summary(out, len(summary.written), len(summary.skipped)))


def _follow(checkpoints: Path, out: Path, options: dict[str, Any]) -> None:
    from ckpt_probe.cli.console import bars, say
    from ckpt_probe.extraction import follow_series

    written: list[str] = []
    skipped: list[str] = []
    end = ""
    with bars() as progress:
        try:
            for name, new in follow_series(checkpoints, out, progress=progress, **options):
                (written if new else skipped).append(name)
                if new:
                    progress.message(f"{out / name}.h5: written")
        except KeyboardInterrupt:
            # The usual way to end --follow without --until.
            end = "; stopped"
    say(_summary(out, len(written), len(skipped)) + end)


def _summary(out: Path, written: int, skipped: int) -> str:
    return f"{out}: {written} {'dump' if written == 1 else 'dumps'} written, {skipped} already complete"

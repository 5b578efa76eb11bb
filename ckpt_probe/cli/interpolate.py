"""`ckpt-probe interpolate`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ckpt_probe.cli.flags import PATH, POINTS, SPAN, explicit_options, require_used
from ckpt_probe.cli.options import (
    FORWARD_SETTINGS,
    flag,
    option,
    option_group,
    out_option,
    setting_group,
    subject_options,
    verb,
)
from ckpt_probe.cli.output import bars, say, show, take_printing
from ckpt_probe.errors import UsageError
from ckpt_probe.paths.options import BENT, METHODS, SHAPES

EXAMPLE = """\b
Examples: ckpt-probe interpolate A.safetensors B.safetensors -o paths/ab --points 21
          ckpt-probe interpolate A.safetensors B.safetensors --alpha 0.3 --out mid.safetensors"""
BARS = "▁▂▃▄▅▆▇█"
WRITER_OPTIONS = ("state_key", "base", "dtype", "overwrite")
STRAIGHT = ("path", "linear")
"""Option that --alpha accepts although it has no effect."""

TRAINING_OPTIONS = ("curve_epochs", "curve_learning_rate")

SHAPE = option("--path", "SHAPE", "linear (default), slerp, bezier or polychain.", SHAPES, "linear")
POINT_COUNT = option("--points", "N|auto", "Positions; auto: more where the loss bends.", POINTS, "11")
ALIGN = option("--align", "HOW", "Match channels: permutation or activations.", METHODS)
PATH_SETTINGS = (
    "errors",
    option("span", "LOW:HIGH", "First and last position.", SPAN, "0:1"),
    option("curve_epochs", "N", "Epochs to train a midpoint.", float, 20),
    option("curve_learning_rate", "RATE", "Learning rate of a midpoint.", float, None, "that of A"),
    option("midpoint", "FILE", "Midpoint to use instead of training one.", PATH),
    option("align_samples", "N", "Samples for --align activations.", click.IntRange(min=2), 1024),
    option("align_spec", "JSON", "JSON file of channels that can be permuted.", PATH),
    "batchnorm batchnorm_samples",
    option("keep_dumps", "BOOL", "Also store features of every point in OUT/dumps.", bool),
)


@verb("interpolate", EXAMPLE)
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@option_group(
    "Path",
    option("--alpha", "X", "Only write the checkpoint at this position (0: A, 1: B).", float),
    SHAPE,
    POINT_COUNT,
    ALIGN,
)
@subject_options
@option_group(
    "Output",
    out_option("Directory for results; with --alpha, the file.", "PATH"),
    flag("--overwrite", "Replace existing results."),
    "json csv wide",
)
@setting_group("--set", "Less common settings", *PATH_SETTINGS, FORWARD_SETTINGS, "dtype")
def command(a: Path, b: Path, out: Path, alpha: float | None, **options: Any) -> None:
    """Evaluate a path between two checkpoints A and B, or write one point of it.

    Computes loss, accuracy, all metrics of analyze and the barrier. Repeat the command after an interruption. --alpha
    needs neither model nor data.
    """
    from ckpt_probe.checkpoints import is_series
    from ckpt_probe.remote import resolve

    if alpha is not None:
        write_point(a, b, out, alpha, options)
    elif is_series(resolve(a)) and is_series(resolve(b)):
        raise UsageError(f"{a}, {b}: two runs; ckpt-probe barriers computes the barriers between them")
    else:
        evaluate_ends(a, b, out, options)


def write_point(a: Path, b: Path, out: Path, alpha: float, options: dict[str, Any]) -> None:
    """Write the checkpoint at one position of the straight line, without evaluating it."""
    unused = [
        spelling
        for name, spelling in explicit_options().items()
        if name not in {"out", "alpha", *WRITER_OPTIONS} and (name, options[name]) != STRAIGHT
    ]
    if unused:
        raise UsageError(
            f"--alpha writes a point of the straight line between A and B; it does not take {', '.join(unused)}"
        )

    from ckpt_probe.merging import interpolate

    with bars() as progress:
        chosen = {name: options[name] for name in WRITER_OPTIONS}
        summary = interpolate(a, b, alpha=alpha, out=out, progress=progress, **chosen)
    copied = (
        f"; {len(summary.copied)} integer tensors copied from {(b if alpha == 1 else a).name}" if summary.copied else ""
    )
    say(f"{out}: {summary.interpolated} tensors interpolated at alpha {alpha:g}{copied}")


def evaluate_ends(a: Path, b: Path, out: Path, options: dict[str, Any]) -> None:
    """Evaluate the path between two checkpoints and print its points and barriers."""
    output = take_printing(options)
    keywords = path_keywords(options)

    from ckpt_probe.paths import evaluate_path

    with bars() as progress:
        result = evaluate_path(a, b, out, resume=not keywords["overwrite"], progress=progress, **keywords)
    output.print(result.points)
    if output.is_table:
        print_barriers(result.points, result.summary)
        if result.alignment is not None:
            distances = f"{result.alignment['before']:.4g} → {result.alignment['after']:.4g}"
            show(f"aligned: distance between the ends {distances}; {out / 'aligned.safetensors'} is B in A's order")
        if (out / "midpoint.safetensors").exists():
            show(f"{out / 'midpoint.safetensors'} is the midpoint; --set midpoint=FILE uses it again")
        show(f"distance between the ends {result.distance:.4g}, length of the path {result.length:.4g}")
    say(f"{out}: {len(result.points)} records, one per point and split")


def path_keywords(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options as keywords of `evaluate_path`; raise UsageError if one has no effect with the others."""
    require_used(False, "--alpha, which writes a checkpoint", "dtype")
    require_used(options["path"] in BENT, f"--path {' or '.join(BENT)}", *TRAINING_OPTIONS, "midpoint")
    require_used(options["midpoint"] is None, "a midpoint to train, which --midpoint replaces", *TRAINING_OPTIONS)
    require_used(options["align"] == "activations", "--align activations", "align_samples")
    require_used(options["batchnorm"] == "recompute", "--batchnorm recompute", "batchnorm_samples")
    return {name: value for name, value in options.items() if name != "dtype"}


def print_barriers(points: Sequence[dict[str, Any]], summary: Sequence[dict[str, Any]]) -> None:
    """Print the barrier of each split, with the loss along the path as a line of bars."""
    for barrier in summary:
        split = barrier["split"]
        loss = [point["loss"] for point in points if point["split"] == split]
        statistics = {"none": "", "recompute": "; batch-norm statistics recomputed between the ends"}
        note = statistics.get(barrier["batchnorm"], "; batch-norm statistics interpolated")
        click.echo(
            f"{split}: loss {sparkline(loss)}  barrier in loss {excess(barrier, 'loss')}, "
            f"in error {excess(barrier, 'error')}{note}"
        )


def sparkline(values: Sequence[float | None]) -> str:
    """Return values as a line of bars of eight heights; a missing value is a dot."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)
    heights = [None if v is None else round((v - low) / span * (len(BARS) - 1)) if span else 0 for v in values]
    return "".join("·" if height is None else BARS[height] for height in heights)


def excess(barrier: Mapping[str, Any], quantity: str) -> str:
    """Return a barrier with position, error, and the rise over the mean of both ends as text; "–" if it is unknown."""
    from ckpt_probe.reporting.wording import WITHIN_ERROR, is_within_error, number_in

    value = barrier[f"barrier.{quantity}"]
    if value is None:
        return "–"
    if value > 0:
        stderr = barrier.get(f"barrier.{quantity}_stderr")
        above = f"{number_in('.4g', value, stderr)} at alpha {barrier[f'barrier.{quantity}_alpha']:.3g}"
        above += f", {WITHIN_ERROR}" if is_within_error(value, stderr) else ""
    else:
        above = "0"
    over_mean, stderr = (barrier.get(f"barrier.{quantity}_over_mean{ending}") for ending in ("", "_stderr"))
    return above if over_mean is None else f"{above} ({number_in('.4g', over_mean, stderr)} over the mean of the ends)"

"""`ckpt-probe interpolate`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ckpt_probe.cli.options import (
    batchnorm_options,
    check_batchnorm_samples,
    explicit_options,
    numbers,
    subject_options,
    take_arguments,
    worker_options,
    writer_options,
)
from ckpt_probe.errors import UsageError, printable
from ckpt_probe.paths.options import BENT, METHODS, SHAPES

EXAMPLE = """\b
Examples: ckpt-probe interpolate A.safetensors B.safetensors -o paths/ab --points 21
          ckpt-probe interpolate A.safetensors B.safetensors --alpha 0.3 --out mid.safetensors"""
BARS = "▁▂▃▄▅▆▇█"
WRITER_OPTIONS = ("state_key", "base", "dtype", "threads", "overwrite")
POINT_OPTIONS = ("out", "alpha", *WRITER_OPTIONS)
STRAIGHT = ("path", "linear")
"""Option that --alpha accepts although it has no effect."""

TRAINING_OPTIONS = ("curve_epochs", "curve_learning_rate")
CURVE_OPTIONS = (*TRAINING_OPTIONS, "midpoint")


@click.command("interpolate", epilog=EXAMPLE)
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", required=False, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Directory for the results; with --alpha, the file to write.",
)
@click.option("--alpha", type=float, help="Only write the checkpoint at this position (0 is A, 1 is B).")
@click.option("--consecutive", is_flag=True, help="Compute the barriers between consecutive checkpoints of one run A.")
@click.option(
    "--path",
    type=click.Choice(SHAPES),
    default="linear",
    show_default=True,
    help="Shape of the path; bezier and polychain train a midpoint first.",
)
@click.option(
    "--points", default="11", show_default=True, help='Number of positions, or "auto" to add more where the loss bends.'
)
@click.option(
    "--range",
    "span",
    default="0:1",
    show_default=True,
    metavar="LOW:HIGH",
    help="Range of positions on the path.",
)
@click.option("--curve-epochs", type=float, default=20, show_default=True, help="Training epochs of the midpoint.")
@click.option("--curve-learning-rate", type=float, show_default="that of A", help="Learning rate of the midpoint.")
@click.option(
    "--midpoint", type=click.Path(path_type=Path), metavar="FILE", help="Use this midpoint instead of training one."
)
@click.option(
    "--align",
    type=click.Choice(METHODS),
    help="First permute B's hidden channels to match A's, by weights or by activations.",
)
@click.option(
    "--align-samples",
    type=click.IntRange(min=2),
    default=1024,
    show_default=True,
    help="Number of training samples for --align activations.",
)
@click.option(
    "--align-spec",
    type=click.Path(path_type=Path),
    metavar="JSON",
    help="JSON file of the groups of channels, if they cannot be derived from the model.",
)
@batchnorm_options
@click.option("--keep-dumps", is_flag=True, help="Also store features and logits of every point, in OUT/dumps.")
@subject_options
@worker_options
@click.option("--json", is_flag=True, help="Print JSON Lines, one point per line, instead of the table.")
@click.option("--csv", is_flag=True, help="Print comma-separated values instead of the table.")
@click.option("--wide", is_flag=True, help="Show every column, however wide the terminal is.")
@writer_options
@click.option("--resume", is_flag=True, help="Print a finished path again, from its stored records.")
@click.option("--overwrite", is_flag=True, help="Replace existing results.")
def command(a: Path, b: Path | None, out: Path, **options: Any) -> None:
    """Evaluate a path between two checkpoints A and B, or write one point of the straight line.

    Computes loss, accuracy and every metric of analyze at each point, on every split, and the barrier. Writes
    OUT/points.jsonl and OUT/path.json. The same command continues after an interruption. With --alpha it only writes
    the checkpoint at that position, which needs neither model nor data. If A and B are runs, their checkpoints of equal
    steps are paired, and the barrier is given for each step.
    """
    from ckpt_probe.checkpoints import is_series
    from ckpt_probe.remote import resolve

    consecutive = options.pop("consecutive")
    if consecutive == (b is not None):
        raise UsageError("interpolate takes two checkpoints or two runs A and B; with --consecutive it takes one run A")
    if options["alpha"] is not None and b is None:
        raise UsageError("--alpha and --consecutive exclude each other")
    if options["alpha"] is not None and b is not None:
        write_point(a, b, out, options)
    elif b is None or (is_series(resolve(a)) and is_series(resolve(b))):
        evaluate_runs(a, b, out, options)
    else:
        evaluate_ends(a, b, out, options)


def write_point(a: Path, b: Path, out: Path, options: dict[str, Any]) -> None:
    """Write the checkpoint at one position of the straight line, without evaluating it."""
    alpha = options["alpha"]
    unused = [
        spelling
        for name, spelling in explicit_options().items()
        if name not in POINT_OPTIONS and (name, options[name]) != STRAIGHT
    ]
    if unused:
        raise UsageError(
            f"--alpha writes a point of the straight line between A and B; it does not take {', '.join(unused)}"
        )

    from ckpt_probe.cli.console import bars, say
    from ckpt_probe.merging import interpolate

    with bars() as progress:
        chosen = {name: options[name] for name in WRITER_OPTIONS}
        summary = interpolate(a, b, alpha=alpha, out=out, progress=progress, **chosen)
    copied = f"; {len(summary.copied)} integer tensors copied from {a.name}" if summary.copied else ""
    say(f"{out}: {summary.interpolated} tensors interpolated at alpha {alpha:g}{copied}")


def evaluate_ends(a: Path, b: Path, out: Path, options: dict[str, Any]) -> None:
    """Evaluate the path between two checkpoints and print its points and barriers."""
    keywords, (json, csv, wide) = _evaluation_keywords(options)

    from ckpt_probe.cli.console import bars, say
    from ckpt_probe.cli.output import print_records
    from ckpt_probe.paths import evaluate_path

    with bars() as progress:
        result = evaluate_path(a, b, out, progress=progress, **keywords)
    print_records(result.points, json=json, csv=csv, wide=wide)
    if not json and not csv:
        print_barriers(result.points, result.summary)
        if result.alignment is not None:
            distances = f"{result.alignment['before']:.4g} → {result.alignment['after']:.4g}"
            click.echo(
                printable(
                    f"aligned: distance between the ends {distances}; {out / 'aligned.safetensors'} is B in A's order"
                )
            )
        if (out / "midpoint.safetensors").exists():
            click.echo(printable(f"{out / 'midpoint.safetensors'} is the trained midpoint; --midpoint uses it again"))
        click.echo(
            printable(f"distance between the ends {result.distance:.4g}, length of the path {result.length:.4g}")
        )
    say(f"{out}: {len(result.points)} records, one per point and split")


def evaluate_runs(a: Path, b: Path | None, out: Path, options: dict[str, Any]) -> None:
    """Evaluate the path of every pair of checkpoints of one run or two, and print the barriers by step."""
    keywords, (json, csv, _) = _evaluation_keywords(options)

    from ckpt_probe.cli.console import bars, say
    from ckpt_probe.paths import barriers
    from ckpt_probe.reporting import to_csv, to_json_line

    if keywords.pop("resume") and keywords["overwrite"]:
        raise UsageError("--overwrite and --resume exclude each other")
    with bars() as progress:
        records = barriers(a, b, out=out, progress=progress, **keywords)
    if csv:
        click.echo(to_csv(records), nl=False)
    for record in records if not csv else ():
        step = str(record["step"]) + (f" to {record['to_step']}" if "to_step" in record else "")
        excess = f"barrier in loss {_excess(record, 'loss')}, in error {_excess(record, 'error')}"
        click.echo(printable(to_json_line(record) if json else f"step {step}  {record['split']}: {excess}"))
    say(f"{out}: {len(records)} barriers")


def _evaluation_keywords(options: dict[str, Any]) -> tuple[dict[str, Any], tuple[bool, bool, bool]]:
    """Convert the options to keywords of `evaluate_path` or `barriers`.

    Returns:
        The keywords, and the values of --json, --csv and --wide.

    Raises:
        UsageError: If an option has no effect with the others.
    """
    printed = options["json"], options["csv"], options["wide"]
    if printed[:2] == (True, True):
        raise UsageError("--json and --csv exclude each other")
    explicit, path = explicit_options(), options["path"]
    for names, used, reason in (
        (("dtype", "threads"), False, "--alpha, which writes a checkpoint, is needed for"),
        (CURVE_OPTIONS, path in BENT, f"--path {' or '.join(BENT)} is needed for"),
        (TRAINING_OPTIONS, "midpoint" not in explicit, "--midpoint, which needs no training, excludes"),
        (("align_samples",), options["align"] == "activations", "--align activations is needed for"),
    ):
        unused = [explicit[name] for name in names if name in explicit]
        if unused and not used:
            raise UsageError(f"{reason} {', '.join(unused)}")
    check_batchnorm_samples(options["batchnorm"])
    arguments = take_arguments(options)
    other_uses = {"alpha", "dtype", "threads", "json", "csv", "wide"}
    keywords = {name: value for name, value in options.items() if name not in other_uses}
    parsed = {"points": _points(options["points"]), "span": _span(options["span"]), **arguments}
    return {**keywords, **parsed}, printed


def print_barriers(points: Sequence[dict[str, Any]], summary: Sequence[dict[str, Any]]) -> None:
    """Print the barrier of each split, with the loss along the path as a line of bars."""
    for barrier in summary:
        split = barrier["split"]
        loss = [point["loss"] for point in points if point["split"] == split]
        statistics = {"none": "", "recompute": "; batch-norm statistics recomputed between the ends"}
        note = statistics.get(barrier["batchnorm"], "; batch-norm statistics interpolated")
        click.echo(
            f"{split}: loss {sparkline(loss)}  barrier in loss {_excess(barrier, 'loss')}, "
            f"in error {_excess(barrier, 'error')}{note}"
        )


def sparkline(values: Sequence[float | None]) -> str:
    """Return values as a line of bars of eight heights; a missing value is a dot."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)
    heights = [None if v is None else round((v - low) / span * (len(BARS) - 1)) if span else 0 for v in values]
    return "".join("·" if height is None else BARS[height] for height in heights)


def _points(text: str) -> int | None:
    if text == "auto":
        return None
    if not (text.isascii() and text.isdigit()) or int(text) < 3:
        raise UsageError(f'--points: expected "auto" or a number of at least 3, found {text!r}')
    return int(text)


def _span(text: str) -> tuple[float, float]:
    limits = numbers(text.replace(":", ","), "--range")
    if len(limits) != 2 or limits[0] >= limits[1] or ":" not in text:
        raise UsageError(f"--range: expected two increasing numbers such as -0.5:1.5, found {text!r}")
    return limits[0], limits[1]


def _excess(barrier: dict[str, Any], quantity: str) -> str:
    value = barrier[f"barrier.{quantity}"]
    if value is None:
        return "–"
    return f"{value:.4g} at alpha {barrier[f'barrier.{quantity}_alpha']:.3g}" if value > 0 else "0"

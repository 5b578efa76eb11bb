"""`ckpt-probe plane`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckpt_probe.cli.flags import PATH, WHOLE, Parsed, require_used
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
from ckpt_probe.cli.output import bars, console, say, show, take_printing

if TYPE_CHECKING:
    from ckpt_probe.paths import PlaneResult

EXAMPLE = """\b
Examples: ckpt-probe plane A.safetensors B.safetensors C.safetensors -o planes/abc --grid 15
          ckpt-probe plane A.safetensors -o planes/around
          ckpt-probe plane runs/digits -o planes/run --directions pca"""
SHADES = " ░▒▓█"
WITHOUT = "?"
STATISTICS = {
    "none": "",
    "recompute": "; batch-norm statistics recomputed on the grid",
    "interpolate": "; batch-norm statistics interpolated in the plane",
}
SIDE = 14
"""Width of the y axis beside a map, in cells."""


def parse_grid(text: str) -> int | tuple[int, int]:
    """Parse the numbers of points along x and y, such as "15" or "15x9"; raise ValueError for other texts."""
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) >= 2 for part in parts):
        raise ValueError(f"expected a number of at least 2, or two numbers such as 15x9, found {text!r}")
    columns, *rows = (int(part) for part in parts)
    return (columns, rows[0]) if rows else columns


@verb("plane", EXAMPLE)
@click.argument("a", type=PATH)
@click.argument("b", required=False, type=PATH)
@click.argument("c", required=False, type=PATH)
@option_group(
    "Plane",
    option(
        "--directions",
        "HOW",
        "random, or pca: main directions of the series A.",
        ("random", "pca"),
        None,
        "random with A alone",
    ),
    option("--grid", "N[xM]", "Points along x and y, such as 15 or 15x9.", Parsed("N[xM]", parse_grid), "15"),
)
@subject_options
@option_group(
    "Output",
    out_option("Directory for the results.", "DIR"),
    flag("--overwrite", "Replace existing results."),
    "json csv",
)
@setting_group(
    "--set",
    "Less common settings",
    option("figure", "FILE", "Also draw contours: a .svg, .png or .pdf file.", PATH),
    "errors",
    option("margin", "X", "Margin around three checkpoints.", float, 0.2),
    option("radius", "X", "Half the side of a random grid.", float, 1.0),
    option("seed", "N", "Seed of the random directions.", WHOLE, 0),
    "batchnorm batchnorm_samples",
    FORWARD_SETTINGS,
)
def command(a: Path, b: Path | None, c: Path | None, out: Path, figure: Path | None, **options: Any) -> None:
    """Evaluate a grid in the plane of three checkpoints, around one, or of the trajectory of a series.

    Computes loss, accuracy and every metric of analyze at each point, and prints a map of the loss. Coordinates are
    distances in weight space; with A alone, multiples of each filter's norm along two random directions. Writes
    OUT/points.jsonl and OUT/plane.json. Repeat the command to continue after an interruption.
    """
    output = take_printing(options)
    require_used(options["batchnorm"] == "recompute", "--batchnorm recompute", "batchnorm_samples")
    options["directions"] = options["directions"] or ("random" if b is None else None)

    from ckpt_probe.paths import evaluate_plane
    from ckpt_probe.reporting.figures import draw_plane
    from ckpt_probe.reporting.line_figure import require_drawable

    overwrite = options["overwrite"]
    if figure is not None:
        require_drawable(figure, overwrite=overwrite)
    with bars() as progress:
        result = evaluate_plane(a, b, c, out=out, resume=not overwrite, progress=progress, **options)
    output.print(result.points, lambda _: print_maps(result))
    if figure is not None:
        for note in draw_plane(result, figure, overwrite=overwrite):
            say(note)
        say(f"{figure}: drawn")
    say(f"{out}: {len(result.points)} records, one per point and split")


def print_maps(result: "PlaneResult") -> None:
    """Print the map of each split, and the directions of the plane."""
    for summary in result.summary:
        print_map(result, summary, console().width)
    show(_axes(result.axes))


def print_map(result: "PlaneResult", summary: dict[str, Any], width: int) -> None:
    """Print the loss of one split as shades, rows from the highest y, with the checkpoints and the lowest loss."""
    from ckpt_probe.reporting.plots.paths import loss_levels

    split = summary["split"]
    marks = [mark for mark in result.marks if mark["split"] == split]
    losses = {(p["x"], p["y"]): p["loss"] for p in result.points if p["split"] == split}
    known = [loss for loss in losses.values() if loss is not None]
    levels = loss_levels(known, len(SHADES))
    cell = 2 if 2 * len(result.xs) + SIDE <= width else 1
    letters = _letters(marks, result.xs, result.ys)
    show(f"{split}: {_lowest(summary)}")
    for mark in marks:
        show(f"  {mark['name']} {mark['checkpoint']}: {_loss(mark, 'loss')} at {_at(mark['x'], mark['y'])}")
    for row in reversed(range(len(result.ys))):
        cells = [
            letters[column, row][:cell].center(cell)
            if (column, row) in letters
            else cell * shade(losses[x, result.ys[row]], levels)
            for column, x in enumerate(result.xs)
        ]
        edge = f"{result.ys[row]:.4g}" if row in {0, len(result.ys) - 1} else ""
        show(f"{edge:>10} │{''.join(cells)}│")
    left, right = f"{result.xs[0]:.4g}", f"{result.xs[-1]:.4g}"
    show(f"{'':>10}  {left}{right:>{max(len(right) + 1, cell * len(result.xs) - len(left))}}")
    if known:
        keys = [f"{mark.strip() or 'blank'} to {level:.3g}" for mark, level in zip(SHADES, levels, strict=True)]
        show(f"{'':>10}  loss: {'  '.join(keys)}")


def shade(loss: float | None, levels: Sequence[float]) -> str:
    """Return the shade of the first level that a loss does not exceed; a question mark for a missing loss."""
    if loss is None:
        return WITHOUT
    return SHADES[next((i for i, level in enumerate(levels) if loss <= level), len(SHADES) - 1)]


def _letters(marks: Sequence[dict[str, Any]], xs: Sequence[float], ys: Sequence[float]) -> dict[tuple[int, int], str]:
    letters: dict[tuple[int, int], str] = {}
    for mark in marks:
        cell = _nearest(mark["x"], xs), _nearest(mark["y"], ys)
        letters[cell] = letters.get(cell, "") + mark["name"]
    return letters


def _nearest(value: float, grid: Sequence[float]) -> int:
    return min(range(len(grid)), key=lambda i: abs(grid[i] - value))


def _lowest(summary: dict[str, Any]) -> str:
    where = f" at {_at(summary['lowest.x'], summary['lowest.y'])}" if summary["lowest.loss"] is not None else ""
    without = summary["without_loss"]
    absent = f"; {without} of {summary['points']} points have no loss ({WITHOUT})" if without else ""
    note = STATISTICS[summary["batchnorm"]]
    return f"lowest {_loss(summary, 'lowest.loss')} on the grid{where}{absent}{note}"


def _loss(record: dict[str, Any], name: str) -> str:
    from ckpt_probe.reporting.wording import number_in

    value = record[name]
    return "loss –" if value is None else f"loss {number_in('.4g', value, record.get(f'{name}_stderr'))}"


def _at(x: float, y: float) -> str:
    return f"x {x:.4g}, y {y:.4g}"


def _axes(axes: dict[str, Any]) -> str:
    if "share.first" in axes:
        shares = [f"{axes[f'{kind}.{name}']:.0%}" for kind in ("share", "walk") for name in ("first", "second")]
        return f"shares of variance {shares[0]}, {shares[1]}; of a random walk as long {shares[2]}, {shares[3]}"
    if "cosine" in axes:
        cosine = "–" if axes["cosine"] is None else f"{axes['cosine']:.3g}"
        return f"lengths of the directions {axes['length.first']:.4g}, {axes['length.second']:.4g}; cosine {cosine}"
    distances = ", ".join(f"{pair.upper()} {axes[f'distance.{pair}']:.4g}" for pair in ("ab", "ac", "bc"))
    return f"distances {distances}; angle at A {axes['angle']:.3g}°"

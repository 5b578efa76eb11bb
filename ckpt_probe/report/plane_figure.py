"""A plane of weights → a figure: filled contours of the loss of each split, with the checkpoints marked."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt_probe.report.canvas import require_drawable, save, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ckpt_probe.planes import PlaneResult

CONTOURS = 14
NARROW = 4
"""Ratio of the axes' lengths beyond which they are drawn to different scales."""


def loss_levels(losses: Sequence[float], count: int) -> list[float]:
    """Upper ends of `count` ranges, spaced evenly in the logarithm from the lowest loss to the highest.

    A loss of less than a millionth of the highest counts as that; no levels where there is no loss.
    """
    if not losses:
        return []
    high = max(losses)
    low = max(min(losses), high * 1e-6)
    return [low * (high / low) ** ((i + 1) / count) if low > 0 else high for i in range(count - 1)] + [high]


def draw_plane(result: "PlaneResult", path: Path | str, *, overwrite: bool = False) -> list[str]:
    """Draw the loss over a plane into an SVG, PNG or PDF file, by its suffix; returns what matplotlib warned of.

    The same result gives the same bytes. Levels are spaced evenly in the logarithm; points without a loss are left
    white. Raises UsageError where matplotlib is not installed, the suffix is another, or the file exists and
    `overwrite` is not set.
    """
    path = Path(path)
    require_drawable(path, overwrite=overwrite)
    from matplotlib.figure import Figure

    splits = [summary["split"] for summary in result.summary]
    with styled(axes_grid=False) as said:
        figure = Figure(figsize=(4.4 * len(splits), 3.4), layout="constrained")
        for axes, split in zip(figure.subplots(1, len(splits), squeeze=False).flat, splits, strict=True):
            _panel(figure, axes, result, split)
        save(figure, path, overwrite=overwrite)
    return said


def _panel(figure: "Figure", axes: "Axes", result: "PlaneResult", split: str) -> None:
    from matplotlib.colors import LogNorm

    found = {(p["x"], p["y"]): p["loss"] for p in result.points if p["split"] == split}
    known = [loss for loss in found.values() if loss is not None]
    top = loss_levels(known, CONTOURS)
    # A loss that is the same everywhere, or 0 everywhere, has no levels to tell apart.
    if top and 0 < (low := max(min(known), max(known) * 1e-6)) < max(known):
        rows: list[list[float]] = [
            [math.nan if found[x, y] is None else max(found[x, y], low) for x in result.xs] for y in result.ys
        ]
        filled = axes.contourf(result.xs, result.ys, rows, [low, *top], norm=LogNorm(low, top[-1]), cmap="viridis")
        bar = figure.colorbar(filled, ax=axes, label="loss (nats)", ticks=[low, *top[1::3]])
        bar.ax.set_yticklabels([f"{level:.3g}" for level in [low, *top[1::3]]])
        bar.ax.minorticks_off()
    for mark in result.marks:
        if mark["split"] == split:
            _mark(axes, mark)
    axes.set_xlim(result.xs[0], result.xs[-1])
    axes.set_ylim(result.ys[0], result.ys[-1])
    ratio = (result.xs[-1] - result.xs[0]) / (result.ys[-1] - result.ys[0])
    axes.set_aspect("equal" if 1 / NARROW < ratio < NARROW else "auto")
    random = "cosine" in result.axes
    unit = "norms of filters" if random else "distance in weight space"
    axes.set_xlabel(f"x ({unit})")
    axes.set_ylabel(f"y ({unit})")
    axes.set_title(split)


def _mark(axes: "Axes", mark: dict[str, Any]) -> None:
    place = mark["x"], mark["y"]
    axes.plot(*place, marker="o", color="white", markeredgecolor="black", markersize=5, clip_on=False)
    axes.annotate(
        mark["name"],
        place,
        xytext=(5, 4),
        textcoords="offset points",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.8},
    )

"""Figures of planes of weights: contours of the loss of each split, with the checkpoints marked."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ckpt_probe.reporting.figures.canvas import drawing, require_drawable
from ckpt_probe.reporting.plots.description import ContourPlot, PlanePoint
from ckpt_probe.reporting.plots.paths import contour_plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ckpt_probe.paths import PlaneResult

NARROW = 4
"""Ratio of the axes' lengths beyond which they are drawn to different scales."""


def draw_plane(result: "PlaneResult", path: Path | str, *, overwrite: bool = False) -> list[str]:
    """Draw the loss over a plane into an SVG, PNG or PDF file, by its suffix; return the warnings of matplotlib.

    The same result gives the same bytes. Levels are spaced evenly in the logarithm; points without a loss are left
    white. Raises UsageError where matplotlib is not installed, the suffix is another, or the file exists and
    `overwrite` is not set.
    """
    path = Path(path)
    require_drawable(path, overwrite=overwrite)
    return draw_contour_plots(contour_plots(result), path, overwrite=overwrite)


def draw_contour_plots(plots: Sequence[ContourPlot], path: Path, *, overwrite: bool = False) -> list[str]:
    """Draw contour plots side by side into one file; return the warnings of matplotlib."""
    with drawing(path, (4.4 * len(plots), 3.4), overwrite=overwrite, axes_grid=False) as (figure, warnings):
        for axes, plot in zip(figure.subplots(1, len(plots), squeeze=False).flat, plots, strict=True):
            _panel(figure, axes, plot)
    return warnings


def _panel(figure: "Figure", axes: "Axes", plot: ContourPlot) -> None:
    from matplotlib.colors import LogNorm

    if plot.levels:
        low, *top = plot.levels
        values = np.maximum(plot.values, low)
        filled = axes.contourf(plot.xs, plot.ys, values, plot.levels, norm=LogNorm(low, top[-1]), cmap="viridis")
        ticks = [low, *top[1::3]]
        bar = figure.colorbar(filled, ax=axes, label=f"loss ({plot.unit})", ticks=ticks)
        bar.ax.set_yticklabels([f"{level:.3g}" for level in ticks])
        bar.ax.minorticks_off()
    if plot.joined:
        axes.plot([p.x for p in plot.points], [p.y for p in plot.points], color="#444444", linewidth=1.0)
    for mark in plot.points:
        _mark(axes, mark)
    axes.set_xlim(plot.xs[0], plot.xs[-1])
    axes.set_ylim(plot.ys[0], plot.ys[-1])
    ratio = (plot.xs[-1] - plot.xs[0]) / (plot.ys[-1] - plot.ys[0])
    axes.set_aspect("equal" if 1 / NARROW < ratio < NARROW else "auto")
    axes.set_xlabel(plot.x.label)
    axes.set_ylabel(plot.y.label)
    axes.set_title(plot.title)


def _mark(axes: "Axes", mark: PlanePoint) -> None:
    position = mark.x, mark.y
    axes.plot(*position, marker="o", color="white", markeredgecolor="black", markersize=5, clip_on=False)
    axes.annotate(
        mark.name,
        position,
        xytext=(5, 4),
        textcoords="offset points",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.8},
    )

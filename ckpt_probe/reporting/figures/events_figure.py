"""Figures of events: intervals of onset, change and end on the axis of steps, with the metrics beneath."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ckpt_probe.errors import DataError, printable
from ckpt_probe.findings import Findings
from ckpt_probe.reporting.figures.canvas import drawing, require_drawable
from ckpt_probe.reporting.findings import event_plots
from ckpt_probe.reporting.plots.description import Axis, IntervalPlot, colour_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT_OF_ROW, HEIGHT_OF_METRICS, WIDTH = 0.22, 2.6, 7.0
BARS = {"change": (0.25, 0.35), "onset": (0.7, 1.0), "end": (0.7, 0.55)}
"""Height and opacity of the bars of each kind of event."""


def draw_events(findings: Findings, path: Path | str, *, overwrite: bool = False) -> None:
    """Draw intervals, one row per metric sorted by onset, and the metrics beneath, each between 0 and 1.

    Intervals of one metric in several runs are drawn upon each other; the metrics have a band over the runs.

    Args:
        findings: The findings.
        path: File to write; its suffix .svg, .png or .pdf decides the format.
        overwrite: Whether to replace an existing file.

    Raises:
        DataError: If there is no event.
        UsageError: If matplotlib is not installed, or the suffix is unknown.
    """
    path = Path(path)
    require_drawable(path, overwrite=overwrite)
    plots = list(event_plots({"": findings}))
    if not plots:
        raise DataError(f"{path}: no event to draw")
    [plot] = plots
    runs = len({(event["group"], event["seed"]) for event in findings})
    heights = [HEIGHT_OF_ROW * len(plot.rows) + 0.3, HEIGHT_OF_METRICS]
    with drawing(path, (WIDTH, sum(heights) + 0.6), overwrite=overwrite) as (figure, _):
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=heights)
        _rows(above, plot, runs)
        for row, name in enumerate(plot.rows):
            _metric(below, findings, name, colour_of(row, len(plot.rows)))
        _scale(below, plot.x)
        below.set(ylabel="share of the range")


def draw_interval_plot(plot: IntervalPlot, path: Path, *, overwrite: bool = False) -> list[str]:
    """Draw the intervals of one run, and return warnings of matplotlib."""
    with drawing(path, (WIDTH, HEIGHT_OF_ROW * len(plot.rows) + 0.9), overwrite=overwrite) as (figure, warnings):
        axes = figure.subplots()
        _rows(axes, plot, 1)
        _scale(axes, plot.x)
    return warnings


def _rows(axes: "Axes", plot: IntervalPlot, runs: int) -> None:
    count = len(plot.rows)
    for bar in plot.bars:
        height, opacity = BARS[bar.kind]
        row = plot.rows.index(bar.row)
        colour = colour_of(row, count)
        axes.barh(row, bar.stop - bar.start, height, bar.start, color=colour, alpha=opacity / runs**0.5, lw=0)
    axes.set_yticks(range(count), [printable(name) for name in plot.rows])
    axes.invert_yaxis()
    axes.set_title("full: onset, pale: end, thin: change", loc="left")


def _metric(axes: "Axes", findings: Findings, name: str, colour: str) -> None:
    curves = [each for each in findings.series if each.name == name]
    steps = sorted(set.intersection(*(set(each.steps.tolist()) for each in curves)))
    values = np.array([np.interp(steps, each.steps, each.values) for each in curves])
    values = (values - values.min()) / max(float(np.ptp(values)), 1e-300)
    axes.plot(steps, values.mean(axis=0), color=colour)
    if len(curves) > 1:
        axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, lw=0)


def _scale(axes: "Axes", x: Axis) -> None:
    if x.log:
        axes.set_xscale("symlog", linthresh=x.linear_to or 1)
    axes.set_xlabel(x.label)

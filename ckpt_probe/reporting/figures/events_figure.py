"""Figures of events: intervals of onset, change and end on the axis of steps, with the metrics beneath."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ckpt_probe.errors import DataError, printable
from ckpt_probe.findings import Findings
from ckpt_probe.findings.detection import name_of
from ckpt_probe.reporting.figures.canvas import drawing, require_drawable
from ckpt_probe.reporting.findings import sorted_rows
from ckpt_probe.reporting.plots.description import Axis, IntervalPlot, colour_of
from ckpt_probe.reporting.plots.metrics import axis_along

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT_OF_ROW, HEIGHT_OF_METRICS, WIDTH = 0.22, 2.6, 7.0
BARS = {"change": (0.25, 0.35), "onset": (0.7, 1.0), "end": (0.7, 0.55)}
"""Height and opacity of the bars of each kind of event."""

Bars = Iterable[tuple[str, str, float, float]]
"""Row, kind, and both ends of each interval."""


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
    names = sorted_rows(findings)
    if not names:
        raise DataError(f"{path}: no event to draw")
    runs = len({(event["group"], event["seed"]) for event in findings})
    steps = sorted({float(step) for series in findings.series for step in series.steps})
    bars = [(name_of(event), event["kind"], event["from_step"], event["to_step"]) for event in findings]
    heights = [HEIGHT_OF_ROW * len(names) + 0.3, HEIGHT_OF_METRICS]
    with drawing(path, (WIDTH, sum(heights) + 0.6), overwrite=overwrite) as (figure, _):
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=heights)
        _rows(above, names, bars, runs)
        for row, name in enumerate(names):
            _metric(below, findings, name, colour_of(row, len(names)))
        _scale(below, axis_along("step", steps))
        below.set(ylabel="share of the range")


def draw_interval_plot(plot: IntervalPlot, path: Path, *, overwrite: bool = False) -> list[str]:
    """Draw the intervals of one run, and return warnings of matplotlib."""
    with drawing(path, (WIDTH, HEIGHT_OF_ROW * len(plot.rows) + 0.9), overwrite=overwrite) as (figure, warnings):
        axes = figure.subplots()
        _rows(axes, plot.rows, [(bar.row, bar.kind, bar.start, bar.stop) for bar in plot.bars], 1)
        _scale(axes, plot.x)
    return warnings


def _rows(axes: "Axes", names: Sequence[str], bars: Bars, runs: int) -> None:
    rows = {name: row for row, name in enumerate(names)}
    for name, kind, start, stop in bars:
        height, opacity = BARS[kind]
        colour = colour_of(rows[name], len(names))
        axes.barh(rows[name], stop - start, height, start, color=colour, alpha=opacity / runs**0.5, lw=0)
    axes.set_yticks(range(len(names)), [printable(name) for name in names])
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

"""Curves → line plots: one a panel, with their styles, scales and values at collapse."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ckpt_probe.errors import UsageError, listed
from ckpt_probe.reporting.plots.curves import Curve, PlottedMetric, Runs, axis_of, curves, described
from ckpt_probe.reporting.plots.description import (
    DASHES,
    GREY,
    MARKERS,
    OTHER_DASHES,
    Axis,
    Level,
    Line,
    LinePlot,
    Mark,
    Style,
    colour_of,
)

AXIS_NAMES = {"step": "training step", "alpha": "α, position on the path"}


@dataclass(frozen=True)
class Scales:
    """What stands on the x axis of every panel (None: alpha where there is one, else step), and which axes are logs."""

    x: str | None = None
    log_x: bool = False
    log_y: bool = False


def line_plots(
    series: Mapping[str, Runs],
    panels: Sequence[Sequence[str]],
    scales: Scales | None = None,
    *,
    splits: Sequence[str] | None = None,
    marks: Sequence[Mark] = (),
) -> tuple[list[LinePlot], list[str]]:
    """One plot for each of `panels`, the metrics that share it; and what was left out, in words.

    series: for each condition its seeds' records. Colour tells conditions, and the marker the metrics that share a
    panel; where there is only one condition, colour tells the metrics. Dashes tell splits. Raises DataError as
    `curves`, UsageError where no metric is named or a logarithmic x has values below 0.
    """
    scales = scales or Scales()
    shown = [list(dict.fromkeys(panel)) for panel in panels]
    names = list(dict.fromkeys(name for panel in shown for name in panel))
    if not names:
        raise UsageError("a figure needs at least one metric")
    x = scales.x or axis_of([record for runs in series.values() for records in runs for record in records])
    found, notes = curves(series, names, x, splits)
    metrics = {name: described(series, name) for name in names}
    axis = x_axis(x, sorted({place for curve in found for place in curve.x}), log=scales.log_x)
    styles = _Styles(list(series), list(dict.fromkeys(curve.split for curve in found)))
    plots = [_panel(panel, found, metrics, axis, scales.log_y, styles, tuple(marks)) for panel in shown]
    return plots, [*notes, *(_unseen(found, metrics) if scales.log_y else [])]


def x_axis(name: str, places: Sequence[float], *, log: bool) -> Axis:
    """The axis of `places`, in ascending order. Raises UsageError for a logarithmic one that goes below 0."""
    if log and (places[0] < 0 or places[-1] <= 0):
        raise UsageError(f"--log-x: {name} goes from {places[0]:g} to {places[-1]:g}; expected values above 0")
    first = next((place for place in places if place > 0), None) if places and places[0] == 0 else None
    return Axis(
        AXIS_NAMES.get(name, name),
        log=log,
        linear_to=first,
        ticks=() if first is None else _powers(first, places[-1]),
        whole=name in {"step", "epoch"},
    )


@dataclass(frozen=True)
class _Styles:
    """Who is told apart by what."""

    conditions: Sequence[str]
    splits: Sequence[str | None]

    def of(self, panel: Sequence[str], curve: Curve) -> Style:
        several = len(self.conditions) > 1
        others = [split for split in self.splits if split not in DASHES]
        return Style(
            self.colour(panel, curve.condition, curve.metric),
            DASHES.get(curve.split) or OTHER_DASHES[others.index(curve.split) % len(OTHER_DASHES)],
            MARKERS[panel.index(curve.metric) % len(MARKERS)] if several else MARKERS[0],
            hollow=curve.split not in {"train", None},
        )

    def colour(self, panel: Sequence[str], condition: str, metric: str) -> str:
        if len(self.conditions) == 1:
            return colour_of(panel.index(metric), len(panel))
        return colour_of(self.conditions.index(condition), len(self.conditions))


def _panel(
    panel: Sequence[str],
    found: Sequence[Curve],
    metrics: Mapping[str, PlottedMetric],
    x: Axis,
    log_y: bool,
    styles: _Styles,
    marks: tuple[Mark, ...],
) -> LinePlot:
    mine = [curve for curve in found if curve.metric in panel]
    units = {metrics[name].unit for name in panel}
    title = ", ".join(metrics[name].label for name in panel)
    single = len(styles.conditions) == 1 and len(panel) > 1
    levels = [
        Level(value, "at collapse", styles.colour(panel, styles.conditions[0], name) if single else GREY)
        for name in panel
        for value in metrics[name].references
    ]
    lines = [
        Line(
            curve.condition,
            curve.metric,
            curve.split,
            curve.x,
            curve.mean,
            styles.of(panel, curve),
            seeds=curve.seeds,
            low=curve.low,
            high=curve.high,
        )
        for curve in mine
    ]
    return LinePlot(
        key="-".join(panel),
        title=title,
        x=x,
        y=Axis(title, units.pop() if len(units) == 1 else "", log=log_y),
        lines=tuple(lines),
        names={name: metrics[name].label for name in panel},
        meaning=metrics[panel[0]].meaning if len(panel) == 1 else "",
        levels=tuple(levels),
        marks=marks,
    )


def _unseen(found: Sequence[Curve], metrics: Mapping[str, PlottedMetric]) -> list[str]:
    """What a logarithmic axis cannot show, in words."""
    below = sum(value <= 0 for curve in found for value in curve.mean)
    flat = [metric.label for metric in metrics.values() if any(value <= 0 for value in metric.references)]
    notes = [f"{below} values of 0 or less have no place on a logarithmic axis; the line breaks there"]
    return (notes if below else []) + (
        [f"at collapse {listed(flat)} is 0, which has no place on a logarithmic axis"] if flat else []
    )


def _powers(first: float, last: float) -> tuple[float, ...]:
    """0 and the powers of ten between; the ends where there is none."""
    low, high = math.ceil(math.log10(first)), math.floor(math.log10(last))
    if low > high:
        return 0, first, last
    return 0, *(10.0**power for power in range(low, high + 1))

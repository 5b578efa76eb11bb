"""Turn curves into line plots, one for each panel, with styles, scales and values at collapse."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ckpt_probe.analysis.records import metric_names
from ckpt_probe.errors import UsageError, listed
from ckpt_probe.keywords import as_sequence
from ckpt_probe.moments.registry import find_metrics
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


def line_plots(
    series: Mapping[str, Runs],
    panels: Sequence[Sequence[str]],
    *,
    x: str | None = None,
    log_x: bool = False,
    log_y: bool = False,
    splits: Sequence[str] | None = None,
    marks: Sequence[Mark] = (),
) -> tuple[list[LinePlot], list[str]]:
    """Describe one plot for each panel.

    Colours distinguish conditions, and markers the metrics of a panel; with a single condition, colours distinguish
    metrics. Dashes distinguish splits.

    Args:
        series: Records of every seed, by condition.
        panels: Names of the metrics of each panel.
        x: Quantity on the x axis; None for alpha if the records have it, else step.
        log_x: Whether the x axis is logarithmic.
        log_y: Whether the y axes are logarithmic.
        splits: Names of the splits; None for all.
        marks: Vertical lines with labels.

    Returns:
        The plots, and notes on values that are missing or cannot be drawn.

    Raises:
        DataError: As `curves`.
        UsageError: If there is no metric, or a logarithmic x axis has values below 0.
    """
    known = metric_names(record for runs in series.values() for records in runs for record in records)
    panels = [find_metrics(panel, known) for panel in panels]
    names = list(dict.fromkeys(name for panel in panels for name in panel))
    if not names:
        raise UsageError("a figure needs at least one metric")
    x = x or axis_of([record for runs in series.values() for records in runs for record in records])
    all_curves, notes = curves(series, names, x, splits)
    metrics = {name: described(series, name) for name in names}
    axis = x_axis(x, sorted({at for curve in all_curves for at in curve.x}), log=log_x)
    styles = _Styles(list(series), list(dict.fromkeys(curve.split for curve in all_curves)))
    plots = [_panel(panel, all_curves, metrics, axis, log_y, styles, tuple(marks)) for panel in panels]
    return plots, [*notes, *(_beyond_log_axis(all_curves, metrics) if log_y else [])]


def panels_of(metrics: str | Iterable[str | Iterable[str]]) -> list[list[str]]:
    """Return the names of the metrics of each panel.

    Args:
        metrics: One panel or several, each a text of names with commas or a sequence of names.

    Raises:
        UsageError: If there is no panel, or a panel without a name.
    """
    panels = [
        [name.strip() for text in as_sequence(panel) or () for name in text.split(",") if name.strip()]
        for panel in as_sequence(metrics) or ()
    ]
    if not panels or not all(panels):
        raise UsageError("`metrics`: expected names of metrics such as class.mir,class.hdr")
    return panels


def x_axis(name: str, positions: Sequence[float], *, log: bool) -> Axis:
    """Return the axis of positions in ascending order; raise UsageError if it is logarithmic and goes below 0."""
    if log and (positions[0] < 0 or positions[-1] <= 0):
        raise UsageError(
            f"`log_x=True`: {name} goes from {positions[0]:g} to {positions[-1]:g}; expected values above 0"
        )
    first = next((at for at in positions if at > 0), None) if positions and positions[0] == 0 else None
    return Axis(
        AXIS_NAMES.get(name, name),
        log=log,
        linear_to=first,
        ticks=() if first is None else _ticks(first, positions[-1]),
        integer=name in {"step", "epoch"},
    )


@dataclass(frozen=True)
class _Styles:
    """Styles of all curves: which conditions and splits they must distinguish."""

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
    all_curves: Sequence[Curve],
    metrics: Mapping[str, PlottedMetric],
    x: Axis,
    log_y: bool,
    styles: _Styles,
    marks: tuple[Mark, ...],
) -> LinePlot:
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
            errors=curve.errors,
        )
        for curve in all_curves
        if curve.metric in panel
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


def _beyond_log_axis(all_curves: Sequence[Curve], metrics: Mapping[str, PlottedMetric]) -> list[str]:
    """Return notes on values that a logarithmic axis cannot show."""
    below = sum(value <= 0 for curve in all_curves for value in curve.mean)
    at_zero = [metric.label for metric in metrics.values() if any(value <= 0 for value in metric.references)]
    notes = []
    if below:
        notes.append(f"{below} values of 0 or less have no place on a logarithmic axis; the line breaks there")
    if at_zero:
        notes.append(f"at collapse {listed(at_zero)} is 0, which has no place on a logarithmic axis")
    return notes


def _ticks(first: float, last: float) -> tuple[float, ...]:
    """Return 0 and the powers of ten between first and last, or 0, first and last if no power of ten lies there."""
    low, high = math.ceil(math.log10(first)), math.floor(math.log10(last))
    if low > high:
        return 0, first, last
    return 0, *(10.0**power for power in range(low, high + 1))

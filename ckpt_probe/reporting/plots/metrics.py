"""Describe a plot of every metric of some runs, in groups by topic."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import numpy as np
from numpy.typing import ArrayLike

from ckpt_probe.analysis import Record
from ckpt_probe.analysis.records import metric_names
from ckpt_probe.moments.registry import FAMILIES, metric_named
from ckpt_probe.reporting.plots.curves import line_plots, x_axis
from ckpt_probe.reporting.plots.description import Axis, Line, LinePlot, colour_of
from ckpt_probe.reporting.runs import ORDER, Run, placed

RENYI, BARRIERS, OTHERS = "Rényi entropies", "Barriers", "Other numbers"
FIT = ("batch_accuracy", "batch_loss", "learning_rate")
"""Numbers of the training log that are shown with accuracy and loss."""

NO_MEASURE = frozenset({"samples", "sample.probes", "sample.seed", "class.probes", "class.seed"})
"""Names of values that describe how a number was computed; so do all standard errors."""

WIDE = 100
"""Ratio of the largest to the smallest value above which an axis of positive values is logarithmic at first."""

SPREAD = 4
"""Ratio of the last to the median position above which the x axis is logarithmic at first: steps spaced so."""


def metric_plots(runs: Sequence[Run], axis: str) -> tuple[list[tuple[str, list[LinePlot]]], list[str]]:
    """Describe one plot for each metric of the runs; the runs of a group are one line, their mean, with a band.

    Args:
        runs: The runs.
        axis: Quantity on the x axis.

    Returns:
        Groups of plots with their titles, and notes on missing values.
    """
    notes: list[str] = []
    series: dict[str, list[list[Record]]] = {}
    for run in runs:
        if not metric_names(run.records):
            continue
        positioned = placed(run, axis)
        if positioned is None:
            name = "step" if axis == ORDER else axis
            notes.append(
                f"{run.name}: its records have no {name} that tells them apart; they are in no plot of metrics"
            )
        else:
            series.setdefault(run.group or run.name, []).append(positioned.records)
    names = metric_names([record for seeds in series.values() for records in seeds for record in records])
    names = [name for name in names if name not in {ORDER, axis} and is_measure(name)]
    if not names:
        return [], notes
    plots, more = line_plots(series, [[name] for name in names], x=axis)
    finished = [_finished(plot, len(series), axis) for plot in plots]
    by_name = dict(zip(names, finished, strict=True))
    titles = [*dict.fromkeys(family.group for family in FAMILIES), RENYI, BARRIERS, OTHERS]
    groups = [(title, [by_name[name] for name in names if _group_of(name) == title]) for title in titles]
    return [(title, plots) for title, plots in groups if plots], [*notes, *more]


def is_measure(name: str) -> bool:
    """Return whether a number of a record is drawn: all but those that describe how others were computed."""
    return name not in NO_MEASURE and not name.endswith(("_stderr", "_bias", "_computing_error"))


def _group_of(name: str) -> str:
    """Return the title of the group of plots to which a metric belongs."""
    if name.startswith("renyi_"):
        return RENYI
    if name.startswith("barrier."):
        return BARRIERS
    metric = metric_named(name)
    family = "quality" if name in FIT else metric.family if metric else None
    return next((each.group for each in FAMILIES if each.name == family), OTHERS)


def coloured_by_split(lines: Sequence[Line]) -> tuple[Line, ...]:
    """Return lines of one run with a colour for each split."""
    splits = list(dict.fromkeys(line.split for line in lines))
    return tuple(
        replace(line, style=replace(line.style, colour=colour_of(splits.index(line.split), len(splits))))
        for line in lines
    )


def spread_out(*arrays: ArrayLike) -> bool:
    """Return whether a logarithmic scale suits the values: all finite ones are above 0 and of very different size."""
    values = np.concatenate([np.ravel(np.asarray(array, dtype=float)) for array in arrays])
    values = values[np.isfinite(values)]
    return bool(len(values) and values.min() > 0 and values.max() > WIDE * values.min())


def axis_along(name: str, positions: Sequence[float]) -> Axis:
    """Return the axis of checkpoints at positions in ascending order; logarithmic if their spacing is."""
    positive = [position for position in positions if position > 0]
    log = len(positive) > 3 and positions[0] >= 0 and positions[-1] > SPREAD * median(positive)
    x = x_axis(name, positions, log=log)
    return replace(x, name="checkpoint, in order", integer=True) if name == ORDER else x


def _finished(plot: LinePlot, runs: int, axis: str) -> LinePlot:
    name = next(iter(plot.names))
    lines = plot.lines if runs > 1 else coloured_by_split(plot.lines)
    named = [_named(line, runs, len({other.split for other in lines})) for line in lines]
    x = axis_along(axis, plot.positions)
    log_y = spread_out(*(line.y for line in lines))
    return replace(plot, key=f"metric-{name}", lines=tuple(named), x=x, y=replace(plot.y, log=log_y))


def _named(line: Line, runs: int, splits: int) -> Line:
    parts = [line.condition if runs > 1 else "", line.split or "" if splits > 1 or runs == 1 else ""]
    return replace(line, name=" ".join(part for part in parts if part))

"""Runs → a plot for every metric, along what tells their checkpoints apart, in groups that a person would look for."""

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from ckpt_probe.analysis.records import metric_names
from ckpt_probe.moments.registry import FAMILIES, metric_named
from ckpt_probe.reporting.plots.description import Axis, Line, LinePlot, colour_of
from ckpt_probe.reporting.plots.panels import Scales, line_plots, x_axis
from ckpt_probe.reporting.runs import ORDER, Run, placed

RENYI, BARRIERS, OTHERS = "Rényi entropies", "Barriers", "Other numbers"
FIT = ("batch_accuracy", "batch_loss", "learning_rate")
"""Numbers of the training log that are shown with accuracy and loss."""

NO_MEASURE = frozenset({"samples", "sample.probes", "sample.seed", "class.probes", "class.seed"})
"""Names whose values say how a number was found, not what it is; so does every standard error."""

WIDE = 100
"""Ratio of the largest to the smallest value above which an axis of positive values is logarithmic at first."""

SPREAD = 4
"""Ratio of the last to the median position above which the x axis is logarithmic at first: steps spaced so."""


def metric_plots(runs: Sequence[Run], axis: str) -> tuple[list[tuple[str, list[LinePlot]]], list[str]]:
    """Titled groups of plots, one for each metric that a run has; and what was left out, in words."""
    notes: list[str] = []
    series = {}
    for run in runs:
        along = placed(run, axis)
        if not metric_names(run.records):
            continue
        if along is None:
            notes.append(
                f"{run.name}: its records have no {axis} that tells them apart; they are in no plot of metrics"
            )
        else:
            series[run.name] = [along.records]
    names = metric_names([record for held in series.values() for record in held[0]])
    names = [name for name in names if name not in {ORDER, axis, *NO_MEASURE} and not name.endswith("_stderr")]
    if not names:
        return [], notes
    plots, more = line_plots(series, [[name] for name in names], Scales(x=axis))
    finished = [_finished(plot, len(series), axis) for plot in plots]
    found = dict(zip(names, finished, strict=True))
    titles = [*dict.fromkeys(family.group for family in FAMILIES), RENYI, BARRIERS, OTHERS]
    groups = [(title, [found[name] for name in names if _group_of(name) == title]) for title in titles]
    return [(title, plots) for title, plots in groups if plots], [*notes, *more]


def _group_of(name: str) -> str:
    """Return the title of the group of plots to which a metric belongs."""
    if name.startswith("renyi_"):
        return RENYI
    if name.startswith("barrier."):
        return BARRIERS
    metric = metric_named(name)
    family = "quality" if name in FIT else metric.family if metric else None
    return next((each.group for each in FAMILIES if each.name == family), OTHERS)


def told_by_split(lines: Sequence[Line]) -> tuple[Line, ...]:
    """Lines of one run, told apart by the colour of their splits too."""
    splits = list(dict.fromkeys(line.split for line in lines))
    return tuple(
        replace(line, style=replace(line.style, colour=colour_of(splits.index(line.split), len(splits))))
        for line in lines
    )


def spread_out(values: Sequence[float]) -> bool:
    """Whether values, those that are numbers, want a logarithmic axis: all above 0 and of very different size."""
    known = [value for value in values if not math.isnan(value)]
    return bool(known) and min(known) > 0 and max(known) > WIDE * min(known)


def axis_along(name: str, places: Sequence[float]) -> Axis:
    """The axis that checkpoints at these places, in ascending order, are drawn along; logarithmic where they are so."""
    positive = [place for place in places if place > 0]
    log = len(positive) > 3 and places[0] >= 0 and places[-1] > SPREAD * median(positive)
    x = x_axis(name, places, log=log)
    return replace(x, name="checkpoint, in order", whole=True) if name == ORDER else x


def _finished(plot: LinePlot, runs: int, axis: str) -> LinePlot:
    name = next(iter(plot.names))
    lines = plot.lines if runs > 1 else told_by_split(plot.lines)
    named = [_named(line, runs, len({one.split for one in lines})) for line in lines]
    x = axis_along(axis, plot.positions)
    log_y = spread_out([value for line in lines for value in line.y])
    return replace(plot, key=f"metric-{name}", lines=tuple(named), x=x, y=replace(plot.y, log=log_y))


def _named(line: Line, runs: int, splits: int) -> Line:
    parts = [line.condition if runs > 1 else "", line.split or "" if splits > 1 or runs == 1 else ""]
    return replace(line, name=" ".join(part for part in parts if part))

"""Describe line plots of records: curves of each condition, metric and split, in panels with styles and scales."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ckpt_probe.analysis.entries import STDERR
from ckpt_probe.analysis.records import metric_names, number
from ckpt_probe.errors import DataError, UsageError, listed
from ckpt_probe.keywords import as_sequence
from ckpt_probe.moments.registry import Metric
from ckpt_probe.moments.selection import find_metrics, metric_named, suggest_metrics, values_at_collapse
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
from ckpt_probe.reporting.wording import Record

Runs = Sequence[Sequence[Record]]
"""Records of each seed of one condition."""

AXES = ("step", "alpha", "sparsity", "epoch")
LARGEST = 1e300
"""Largest magnitude of a value that is drawn; the ticks of an axis with larger ones would overflow."""

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
    known = metric_names(_all_records(series))
    panels = [find_metrics(panel, known) for panel in panels]
    names = list(dict.fromkeys(name for panel in panels for name in panel))
    if not names:
        raise UsageError("a figure needs at least one metric")
    x = x or axis_of(_all_records(series))
    all_curves, notes = curves(series, names, x, splits)
    metrics = {name: metric_named(name) or Metric(name, name, "", "") for name in names}
    at_collapse = {name: _references(metric, _all_records(series)) for name, metric in metrics.items()}
    axis = x_axis(x, sorted({at for curve in all_curves for at in curve.x}), log=log_x)
    others = [split for split in dict.fromkeys(curve.split for curve in all_curves) if split not in DASHES]
    several = len(series) > 1

    def style(panel: Sequence[str], curve: Line) -> Style:
        items, item = (list(series), curve.condition) if several else (panel, curve.metric)
        return Style(
            colour_of(items.index(item), len(items)),
            DASHES.get(curve.split) or OTHER_DASHES[others.index(curve.split) % len(OTHER_DASHES)],
            MARKERS[panel.index(curve.metric) % len(MARKERS)] if several else MARKERS[0],
            hollow=curve.split not in {"train", None},
        )

    plots = []
    for panel in panels:
        units = {metrics[name].unit for name in panel}
        title = ", ".join(metrics[name].label for name in panel)
        metric = metrics[panel[0]]
        meaning = f"{metric.meaning} ({metric.source})" if metric.source else metric.meaning
        levels = [
            Level(value, "at collapse", GREY if several or len(panel) == 1 else colour_of(index, len(panel)))
            for index, name in enumerate(panel)
            for value in at_collapse[name]
        ]
        lines = [replace(curve, style=style(panel, curve)) for curve in all_curves if curve.metric in panel]
        plots.append(
            LinePlot(
                key="-".join(panel),
                title=title,
                x=axis,
                y=Axis(title, units.pop() if len(units) == 1 else "", log=log_y),
                lines=tuple(lines),
                names={name: metrics[name].label for name in panel},
                meaning=meaning if len(panel) == 1 else "",
                levels=tuple(levels),
                marks=tuple(marks),
            )
        )
    return plots, [*notes, *(_beyond_log_axis(all_curves, metrics, at_collapse) if log_y else [])]


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
            f"{name} goes from {positions[0]:g} to {positions[-1]:g}; a logarithmic x axis needs values above 0"
        )
    first = next((at for at in positions if at > 0), None) if positions and positions[0] == 0 else None
    return Axis(
        AXIS_NAMES.get(name, name),
        log=log,
        linear_to=first,
        ticks=() if first is None else _ticks(first, positions[-1]),
        integer=name in {"step", "epoch"},
    )


def _references(metric: Metric, records: Sequence[Record]) -> list[float]:
    """Return the distinct values of a metric at collapse in the records."""
    if isinstance(metric.at_collapse, str):
        for record in records:
            number(record, metric.at_collapse, metric.name)
    return sorted(value for value in values_at_collapse(metric, records) if value is not None)


def _beyond_log_axis(
    all_curves: Sequence[Line], metrics: Mapping[str, Metric], at_collapse: Mapping[str, Sequence[float]]
) -> list[str]:
    """Return notes on values that a logarithmic axis cannot show."""
    below = sum(value <= 0 for curve in all_curves for value in curve.y)
    at_zero = [metric.label for name, metric in metrics.items() if any(value <= 0 for value in at_collapse[name])]
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


def curves(
    series: Mapping[str, Runs], metrics: Sequence[str], x: str, splits: Sequence[str] | None = None
) -> tuple[list[Line], list[str]]:
    """Compute the curves of every condition.

    Args:
        series: Records of every seed, by condition.
        metrics: Names of the metrics.
        x: Name of the quantity on the x axis.
        splits: Names of the splits; None for all.

    Returns:
        Curves in the order of conditions, metrics and splits, and notes on missing values and omitted records.

    Raises:
        DataError: If no record has a metric or an x, or one seed has two values at the same x.
        UsageError: If no record has a split.
    """
    records = _all_records(series)
    for metric in metrics:
        if not any(metric in record for record in records):
            raise DataError(f"no record has the metric {metric!r}{suggest_metrics(metric, metric_names(records))}")
    chosen = _chosen_splits(records, splits)
    result, notes = [], []
    for condition, runs in series.items():
        count = len(result)
        for metric in metrics:
            for split in chosen:
                curve, omitted = _curve(condition, metric, split, runs, x)
                result += [curve] if curve.x else []
                notes += [f"{condition}: {metric}: {reason}; the line breaks there" for reason in omitted]
        if len(result) == count:
            wanted = f"{' or '.join(metrics)} at a known {x}"
            raise DataError(f"{condition}: no record has {wanted}; {_available(_all_records({condition: runs}))}")
    for condition, runs in series.items():
        relevant = [
            record
            for record in _all_records({condition: runs})
            if record.get("split") in chosen and any(metric in record for metric in metrics)
        ]
        without = sum(position(record, x, condition) is None for record in relevant)
        if without:
            notes.append(f"{condition}: {without} of {len(relevant)} records have no {x}, and were left out")
    return result, notes


def by_group(series: Mapping[str, Runs], panels: Sequence[Sequence[str]]) -> dict[str, Runs]:
    """Return conditions whose records are of blocks or tensors as one condition for each that has a metric."""
    names = set(find_metrics([name for panel in panels for name in panel], metric_names(_all_records(series))))
    result: dict[str, Runs] = {}
    for condition, runs in series.items():
        kind = next((name for name in ("block", "tensor") if any(name in r for run in runs for r in run)), None)
        if kind is None:
            result[condition] = runs
            continue
        for group in dict.fromkeys(record.get(kind) for run in runs for record in run):
            inside = [[record for record in run if record.get(kind) == group] for run in runs]
            if names & {*metric_names(_all_records({"": inside}))}:
                result[str(group) if len(series) == 1 else f"{condition} {group}"] = inside
    return result


def axis_of(records: Sequence[Record]) -> str:
    """Return the default quantity on the x axis: alpha, the position on a path, if records have it, else step."""
    return next((name for name in ("alpha", "step") if any(r.get(name) is not None for r in records)), "step")


def position(record: Record, x: str, source: str) -> float | None:
    """Return the position of a record on the axis `x`; the sparsity may also be part of the checkpoint's name."""
    value = number(record, x, source)
    if value is not None and abs(value) > LARGEST:
        return None
    if value is None and x == "sparsity":
        named = re.search(r"sparsity[-_=]?(\d*\.?\d+)", str(record.get("checkpoint") or ""))
        return float(named[1]) if named else None
    return value


def _values(records: Sequence[Record], metric: str, split: str | None, x: str, source: str) -> dict[float, float]:
    """Return the values of one seed by position, NaN for a missing one.

    A table of a trainer's log has several rows at a step, each with other columns; a value counts before missing ones.
    """
    of_split = [record for record in records if record.get("split") == split and metric in record]
    pairs = [(position(record, x, source), number(record, metric, source)) for record in of_split]
    known = [(at, value) for at, value in pairs if at is not None and value is not None]
    repeated = [at for at, count in Counter(at for at, _ in known).items() if count > 1]
    if repeated:
        curve = f"{metric} of {split}" if split else metric
        raise DataError(
            f"{source}: {curve} has several values at {x} {repeated[0]:g}; choose another axis with `x=`, or separate "
            "the seeds (NAME=FILE1,FILE2)"
        )
    return dict(sorted({**{at: math.nan for at, _ in pairs if at is not None}, **dict(known)}.items()))


def _curve(condition: str, metric: str, split: str | None, runs: Runs, x: str) -> tuple[Line, list[str]]:
    """Return the curve over all seeds, with the standard errors of a single one, and notes on values not drawn.

    A mean over fewer seeds at one position than at its neighbour would bend the line, so it needs all seeds.
    """
    seeds = [_values(records, metric, split, x, condition) for records in runs]
    positions = sorted({at for values in seeds for at in values})
    columns = [[values.get(at, math.nan) for values in seeds] for at in positions]
    values = [value for column in columns for value in column]
    counts = {
        "are missing": sum(map(math.isnan, values)),
        f"are beyond ±{LARGEST:g}": sum(abs(value) > LARGEST for value in values),
    }
    complete = [column if all(abs(value) <= LARGEST for value in column) else [math.nan] for column in columns]
    mean = [sum(column) / len(column) for column in complete]
    low, high = [*map(min, complete)], [*map(max, complete)]
    known = _values(runs[0], f"{metric}{STDERR}", split, x, condition) if len(runs) == 1 else {}
    errors = [known.get(at, math.nan) for at in positions]
    errors = [] if all(map(math.isnan, errors)) else errors
    return Line(condition, metric, split, positions, mean, seeds=len(seeds), low=low, high=high, errors=errors), [
        f"{count} values {reason}" for reason, count in counts.items() if count
    ]


def _chosen_splits(records: Sequence[Record], splits: Sequence[str] | None) -> list[str | None]:
    available = dict.fromkeys(record.get("split") for record in records)
    if not splits:
        order = {"train": 0, "test": 1, None: 3}
        return sorted(available, key=lambda split: (order.get(split, 2), str(split)))
    for split in splits:
        if split not in available:
            raise UsageError(f"no record of split {split!r}; there are: {listed([str(s) for s in available if s])}")
    return list(dict.fromkeys(splits))


def _available(records: Sequence[Record]) -> str:
    axes = [axis for axis in AXES if any(position(record, axis, "records") is not None for record in records)]
    return f"axes: {listed(axes) or f'none of {listed(AXES)}'}; metrics: {listed(metric_names(records), 40)}"


def _all_records(series: Mapping[str, Runs]) -> list[Record]:
    return [record for runs in series.values() for records in runs for record in records]

"""Runs of a report: checkpoints in order with their records and details, and a plot of each of their metrics."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median

import numpy as np
from numpy.typing import ArrayLike

from ckpt_probe.analysis import Record
from ckpt_probe.analysis.records import metric_names, number, of_penultimate
from ckpt_probe.errors import DataError
from ckpt_probe.moments.errors.design import RecordWithErrors
from ckpt_probe.moments.record import DetailedRecord
from ckpt_probe.moments.registry import FAMILIES
from ckpt_probe.moments.selection import metric_named
from ckpt_probe.reporting.plots.curves import line_plots, position, x_axis
from ckpt_probe.reporting.plots.description import Axis, Line, LinePlot, colour_of

AXES = ("step", "sparsity", "epoch")
ORDER = "order"
"""Name of the axis that numbers checkpoints, used if no other axis distinguishes them."""


@dataclass(frozen=True)
class Run:
    """Run with its records, and their details. class_names: names of classes 0, 1, … as far as known."""

    name: str
    records: list[Record]
    details: list[DetailedRecord]
    class_names: tuple[str, ...] = ()
    layered: tuple[Record, ...] = ()
    """Records of every layer including the penultimate; empty if there are no other layers."""
    group: str | None = None
    seed: str | None = None
    """Group of runs that differ in their seed, and the name of this one in it; None for a run without others."""

    @cached_property
    def checkpoints(self) -> list[str]:
        """Return the names of the checkpoints in the order of the records, or their steps if they have no names."""
        return list(dict.fromkeys(name_of(record) for record in self.records))

    def number_of(self, record: Record) -> int:
        """Return the index of the checkpoint of a record, 0 if the records of the run do not have it."""
        name = name_of(record)
        return self.checkpoints.index(name) if name in self.checkpoints else 0

    def label(self, number: int) -> str:
        """Return the name of a class, or its number if it has no name."""
        return (self.class_names[number] if number < len(self.class_names) else "") or str(number)


def run_of_readings(name: str, readings: Sequence[DetailedRecord], class_names: tuple[str, ...]) -> Run:
    """Make a run of the results of analyzing dumps."""
    layered = _layered([dict(reading.record) for reading in readings])
    readings = [reading for reading in readings if of_penultimate([reading.record])]
    records: list[Record] = [RecordWithErrors(reading.record, reading.influences) for reading in readings]
    return Run(name, records, readings, class_names, layered)


def run_of_records(name: str, records: Sequence[Record], class_names: tuple[str, ...]) -> Run:
    """Make a run of records from a file; records of single classes (`analyze --per-class`) become details."""
    of_splits = [record for record in records if record.get("class") is None]
    rows: dict[tuple[str, str], list[Record]] = {}
    for record in of_penultimate(records):
        if record.get("class") is not None:
            label = number(record, "class", name)
            if label is None or label < 0 or label != int(label):
                raise DataError(f"{name}: class is {record['class']!r}, expected an integer of at least 0")
            rows.setdefault((name_of(record), str(record.get("split"))), []).append({**record, "class": int(label)})
    identities = [{name: group[0].get(name) for name in ("checkpoint", "step", "split")} for group in rows.values()]
    details = [DetailedRecord(record, {}, group) for record, group in zip(identities, rows.values(), strict=True)]
    return Run(name, of_penultimate(of_splits) or identities, details, class_names, _layered(of_splits))


def _layered(records: Sequence[Record]) -> tuple[Record, ...]:
    named = [record for record in records if record.get("layer") is not None and record.get("depth") is not None]
    return tuple(named) if len({record["layer"] for record in named}) > 1 else ()


def name_of(record: Record) -> str:
    """Return the name of the checkpoint of a record, else its step, else ""."""
    if record.get("checkpoint") is not None:
        return str(record["checkpoint"])
    step = record.get("step")
    return "" if step is None else f"step {step:g}" if isinstance(step, float) else f"step {step}"


def common_axis(runs: Sequence[Run]) -> str:
    """Return the axis that distinguishes the checkpoints of most runs, else their order."""
    counts = {name: sum(_distinguishes(run, name) for run in runs) for name in AXES}
    best = max(AXES, key=lambda name: counts[name])
    return best if counts[best] else ORDER


def placed(run: Run, axis: str) -> Run | None:
    """Return the run with positions on the axis in its records; None if the axis does not distinguish them."""
    if axis == ORDER:
        values = [(name_of(each), each.get("split"), name) for each in run.records for name in metric_names([each])]
        if len(set(values)) < len(values):
            return None
        numbers = {name: index for index, name in enumerate(run.checkpoints)}
        return replace(run, records=[{**record, ORDER: numbers[name_of(record)]} for record in run.records])
    return run if _distinguishes(run, axis) else None


def positions(run: Run, axis: str) -> list[float | None]:
    """Return the position of each checkpoint of a run on the axis, None if unknown."""
    values: dict[str, float | None] = dict.fromkeys(run.checkpoints)
    for record in run.records:
        if values[name_of(record)] is None:
            values[name_of(record)] = position(record, axis, run.name)
    return list(values.values())


def _distinguishes(run: Run, axis: str) -> bool:
    seen: set[tuple[str | None, float]] = set()
    for record in run.records:
        value = position(record, axis, run.name)
        split = record.get("split")
        if value is None or (split, value) in seen:
            return False
        seen.add((split, value))
    return bool(seen)


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
    of_splits = runs == 1 or len({line.split for line in lines}) > 1
    names = [(line.condition if runs > 1 else "", line.split or "" if of_splits else "") for line in lines]
    named = [replace(line, name=" ".join(filter(None, parts))) for line, parts in zip(lines, names, strict=True)]
    log_y = spread_out(*(line.y for line in lines))
    x = axis_along(axis, plot.positions)
    return replace(plot, key=f"metric-{name}", lines=tuple(named), x=x, y=replace(plot.y, log=log_y))

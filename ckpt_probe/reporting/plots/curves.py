"""Records → curves: for each condition, split and metric the values along x, over seeds their mean and range."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckpt_probe.analysis.records import metric_names, number
from ckpt_probe.errors import DataError, UsageError, listed
from ckpt_probe.moments.registry import metric_named, values_at_collapse

Record = Mapping[str, Any]
Runs = Sequence[Sequence[Record]]
"""The records of one condition, those of each seed by themselves."""

AXES = ("step", "alpha", "sparsity", "epoch")


@dataclass(frozen=True)
class Curve:
    """One line of a panel: x in ascending order, the mean over seeds, and the lowest and highest of them.

    A value is NaN, and the line broken there, where a seed has none.
    """

    condition: str
    metric: str
    split: str | None
    seeds: int
    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class PlottedMetric:
    """A metric as a figure names it: label, unit, values at collapse, one where all records agree; what it means."""

    name: str
    label: str
    unit: str
    references: tuple[float, ...]
    meaning: str = ""


def curves(
    series: Mapping[str, Runs], metrics: Sequence[str], x: str, splits: Sequence[str] | None = None
) -> tuple[list[Curve], list[str]]:
    """The curves of every condition in `series`, by condition, metric and split; and what was left out, in words.

    `series` maps the name of each condition to its seeds' records. Raises DataError where a metric is nowhere, no
    record has an x, or one seed has two values at one x; UsageError for a split that is nowhere.
    """
    records = _all(series)
    _require_metrics(records, metrics)
    _require_axis(records, x)
    chosen = _splits(records, splits)
    found, notes = [], []
    for condition, runs in series.items():
        for metric in metrics:
            for split in chosen:
                seeds = [_values(records, metric, split, x, condition) for records in runs]
                if any(seeds):
                    curve, missing = _joined(condition, metric, split, seeds)
                    found.append(curve)
                    if missing:
                        notes.append(f"{condition}: {metric}: {missing} values are missing; the line breaks there")
        if not any(curve.condition == condition for curve in found):
            wanted = f"{' or '.join(metrics)} at a known {x}"
            raise DataError(f"{condition}: no record has {wanted}; {_there_is(_all({condition: runs}))}")
    notes += _without_x(series, metrics, chosen, x)
    return found, notes


def axis_of(records: Sequence[Record]) -> str:
    """What stands on the x axis where none is named: alpha, the position on a path, where there is one, else step."""
    return next((name for name in ("alpha", "step") if any(r.get(name) is not None for r in records)), "step")


def position(record: Record, x: str, where: str) -> float | None:
    """A record's place on the axis `x`; the sparsity is taken from the checkpoint's name where it has none itself."""
    value = number(record, x, where)
    if value is None and x == "sparsity":
        named = re.search(r"sparsity[-_=]?(\d*\.?\d+)", str(record.get("checkpoint") or ""))
        return float(named[1]) if named else None
    return value


def described(series: Mapping[str, Runs], name: str) -> PlottedMetric:
    """Label, unit and values at collapse of a metric; its name and none where it is not one of ours."""
    records = _all(series)
    metric = metric_named(name)
    if metric is None:
        return PlottedMetric(name, name, "", ())
    meaning = f"{metric.meaning} ({metric.source})" if metric.source else metric.meaning
    if isinstance(metric.at_collapse, str):
        for record in records:
            number(record, metric.at_collapse, name)
    references = tuple(sorted(value for value in values_at_collapse(metric, records) if value is not None))
    return PlottedMetric(name, metric.label, metric.unit, references, meaning)


def _values(records: Sequence[Record], metric: str, split: str | None, x: str, where: str) -> dict[float, float]:
    of_split = [record for record in records if record.get("split") == split and metric in record]
    places = [(position(record, x, where), number(record, metric, where)) for record in of_split]
    known = [(place, math.nan if value is None else value) for place, value in places if place is not None]
    twice = [place for place, count in Counter(place for place, _ in known).items() if count > 1]
    if twice:
        told = f"{metric} of {split}" if split else metric
        raise DataError(
            f"{where}: {told} has several values at {x} {twice[0]:g}; name another --x, or give the seeds as files of "
            "their own (NAME=FILE1,FILE2)"
        )
    return dict(sorted(known))


def _joined(condition: str, metric: str, split: str | None, seeds: list[dict[float, float]]) -> tuple[Curve, int]:
    # A mean over other seeds at one place than at its neighbour would bend the line: only where all have a value.
    places = sorted({place for values in seeds for place in values})
    columns = [[values.get(place, math.nan) for values in seeds] for place in places]
    whole = [column if not any(map(math.isnan, column)) else [math.nan] for column in columns]
    missing = sum(math.isnan(value) for column in columns for value in column)
    mean = [sum(column) / len(column) for column in whole]
    return Curve(condition, metric, split, len(seeds), places, mean, [*map(min, whole)], [*map(max, whole)]), missing


def _splits(records: Sequence[Record], splits: Sequence[str] | None) -> list[str | None]:
    there = dict.fromkeys(record.get("split") for record in records)
    if not splits:
        order = {"train": 0, "test": 1, None: 3}
        return sorted(there, key=lambda split: (order.get(split, 2), str(split)))
    for split in splits:
        if split not in there:
            raise UsageError(f"no record of split {split!r}; there are: {listed([str(s) for s in there if s])}")
    return list(dict.fromkeys(splits))


def _without_x(series: Mapping[str, Runs], metrics: Sequence[str], splits: list[str | None], x: str) -> list[str]:
    notes = []
    for condition, runs in series.items():
        of_split = [record for record in _all({condition: runs}) if record.get("split") in splits]
        asked = [record for record in of_split if any(metric in record for metric in metrics)]
        without = sum(position(record, x, condition) is None for record in asked)
        if without:
            notes.append(f"{condition}: {without} of {len(asked)} records have no {x}, and were left out")
    return notes


def _require_metrics(records: Sequence[Record], metrics: Sequence[str]) -> None:
    for metric in metrics:
        if not any(metric in record for record in records):
            raise DataError(f"no record has the metric {metric!r}; {_there_is(records)}")


def _require_axis(records: Sequence[Record], x: str) -> None:
    if not any(position(record, x, "records") is not None for record in records):
        there = [axis for axis in AXES if any(position(record, axis, "records") is not None for record in records)]
        raise DataError(
            f"no record has {x} to stand on the x axis; there are: {listed(there) or 'none of ' + listed(AXES)}"
        )


def _there_is(records: Sequence[Record]) -> str:
    return f"there are: {listed(metric_names(records), 40)}"


def _all(series: Mapping[str, Runs]) -> list[Record]:
    return [record for runs in series.values() for records in runs for record in records]

"""Turn records into curves: for each condition, metric and split the values along x, with mean and range over seeds."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ckpt_probe.analysis.entries import STDERR
from ckpt_probe.analysis.records import metric_names, number
from ckpt_probe.errors import DataError, UsageError, listed
from ckpt_probe.moments.registry import find_metrics, metric_named, suggest_metrics, values_at_collapse

Record = Mapping[str, Any]
Runs = Sequence[Sequence[Record]]
"""Records of each seed of one condition."""

AXES = ("step", "alpha", "sparsity", "epoch")


@dataclass(frozen=True)
class Curve:
    """Values of one condition, metric and split along x; NaN where a seed has no value.

    Attributes:
        condition: Name of the condition.
        metric: Name of the metric.
        split: Name of the split.
        seeds: Number of seeds.
        x: Positions in ascending order.
        mean: Mean over the seeds.
        low: Lowest value over the seeds.
        high: Highest value over the seeds.
        errors: Standard errors of a single seed, NaN where they are unknown; empty if none is known.
    """

    condition: str
    metric: str
    split: str | None
    seeds: int
    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    errors: Sequence[float] = ()


@dataclass(frozen=True)
class PlottedMetric:
    """Description of a metric in figures: label, unit, distinct values at collapse, and meaning."""

    name: str
    label: str
    unit: str
    references: tuple[float, ...]
    meaning: str = ""


def curves(
    series: Mapping[str, Runs], metrics: Sequence[str], x: str, splits: Sequence[str] | None = None
) -> tuple[list[Curve], list[str]]:
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
    _require_axis(records, x)
    chosen = _chosen_splits(records, splits)
    result, notes = [], []
    for condition, runs in series.items():
        count = len(result)
        for metric in metrics:
            for split in chosen:
                seeds = [_values(records, metric, split, x, condition) for records in runs]
                if any(seeds):
                    curve, missing = _mean_curve(condition, metric, split, seeds)
                    result.append(_with_errors(curve, runs, x))
                    if missing:
                        notes.append(f"{condition}: {metric}: {missing} values are missing; the line breaks there")
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
    if value is None and x == "sparsity":
        named = re.search(r"sparsity[-_=]?(\d*\.?\d+)", str(record.get("checkpoint") or ""))
        return float(named[1]) if named else None
    return value


def described(series: Mapping[str, Runs], name: str) -> PlottedMetric:
    """Return the description of a metric; only its name if it is not a metric of this package."""
    records = _all_records(series)
    metric = metric_named(name)
    if metric is None:
        return PlottedMetric(name, name, "", ())
    meaning = f"{metric.meaning} ({metric.source})" if metric.source else metric.meaning
    if isinstance(metric.at_collapse, str):
        for record in records:
            number(record, metric.at_collapse, name)
    references = tuple(sorted(value for value in values_at_collapse(metric, records) if value is not None))
    return PlottedMetric(name, metric.label, metric.unit, references, meaning)


def _values(records: Sequence[Record], metric: str, split: str | None, x: str, source: str) -> dict[float, float]:
    """Return the values of one seed by position, NaN for a missing one."""
    of_split = [record for record in records if record.get("split") == split and metric in record]
    pairs = [(position(record, x, source), number(record, metric, source)) for record in of_split]
    known = [(at, math.nan if value is None else value) for at, value in pairs if at is not None]
    repeated = [at for at, count in Counter(at for at, _ in known).items() if count > 1]
    if repeated:
        curve = f"{metric} of {split}" if split else metric
        raise DataError(
            f"{source}: {curve} has several values at {x} {repeated[0]:g}; choose another axis with `x=`, or separate "
            "the seeds (NAME=FILE1,FILE2)"
        )
    return dict(sorted(known))


def _mean_curve(condition: str, metric: str, split: str | None, seeds: list[dict[float, float]]) -> tuple[Curve, int]:
    """Return the curve over all seeds, and the number of missing values.

    A mean over fewer seeds at one position than at its neighbour would bend the line, so it needs all seeds.
    """
    positions = sorted({at for values in seeds for at in values})
    columns = [[values.get(at, math.nan) for values in seeds] for at in positions]
    missing = sum(math.isnan(value) for column in columns for value in column)
    complete = [column if not any(map(math.isnan, column)) else [math.nan] for column in columns]
    mean = [sum(column) / len(column) for column in complete]
    curve = Curve(condition, metric, split, len(seeds), positions, mean, [*map(min, complete)], [*map(max, complete)])
    return curve, missing


def _with_errors(curve: Curve, runs: Runs, x: str) -> Curve:
    """Return a curve of a single seed with its standard errors, if its records have any."""
    if len(runs) != 1:
        return curve
    name = f"{curve.metric}{STDERR}"
    known = {
        position(record, x, curve.condition): error
        for record in runs[0]
        if record.get("split") == curve.split and (error := number(record, name, curve.condition)) is not None
    }
    return replace(curve, errors=[known.get(at, math.nan) for at in curve.x]) if known else curve


def _chosen_splits(records: Sequence[Record], splits: Sequence[str] | None) -> list[str | None]:
    available = dict.fromkeys(record.get("split") for record in records)
    if not splits:
        order = {"train": 0, "test": 1, None: 3}
        return sorted(available, key=lambda split: (order.get(split, 2), str(split)))
    for split in splits:
        if split not in available:
            raise UsageError(f"no record of split {split!r}; there are: {listed([str(s) for s in available if s])}")
    return list(dict.fromkeys(splits))


def _require_axis(records: Sequence[Record], x: str) -> None:
    def has(axis: str) -> bool:
        return any(position(record, axis, "records") is not None for record in records)

    if not has(x):
        available = listed([axis for axis in AXES if has(axis)]) or "none of " + listed(AXES)
        raise DataError(f"no record has {x} for the x axis; there are: {available}")


def _available(records: Sequence[Record]) -> str:
    return f"there are: {listed(metric_names(records), 40)}"


def _all_records(series: Mapping[str, Runs]) -> list[Record]:
    return [record for runs in series.values() for records in runs for record in records]

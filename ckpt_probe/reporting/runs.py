"""Runs of a report: checkpoints in order with their records, portraits and records of classes and layers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ckpt_probe.analysis import Record
from ckpt_probe.analysis.records import metric_names, number, of_penultimate
from ckpt_probe.errors import DataError
from ckpt_probe.moments.errors import RecordWithErrors
from ckpt_probe.moments.record import DetailedRecord
from ckpt_probe.reporting.plots.curves import position

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

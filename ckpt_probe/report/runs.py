"""Runs as a report shows them: checkpoints in order, their records, and what is drawn of each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ckpt_probe.analysis import Record
from ckpt_probe.analysis.lines import number, of_penultimate
from ckpt_probe.errors import DataError
from ckpt_probe.moments.portrait import Portrait
from ckpt_probe.moments.record import DetailedRecord
from ckpt_probe.report.plots.curves import position

AXES = ("step", "sparsity", "epoch")
ORDER = "order"
"""The name under which a record's checkpoint is numbered, where nothing else tells checkpoints apart."""


@dataclass(frozen=True)
class Picture:
    """What is drawn of one checkpoint and split: which checkpoint by its number, its classes, its portrait."""

    checkpoint: int
    split: str
    per_class: list[Record]
    portrait: Portrait | None


@dataclass(frozen=True)
class Run:
    """One run: its records, and pictures where there are any. class_names: names of classes 0, 1, … as far as known."""

    name: str
    records: list[Record]
    pictures: list[Picture]
    class_names: tuple[str, ...] = ()
    layered: tuple[Record, ...] = ()
    """Records of every layer, the penultimate one's among them, where there are others."""

    @cached_property
    def checkpoints(self) -> list[str]:
        """Names of the checkpoints that records are of, in their order; the step where they have none."""
        return list(dict.fromkeys(name_of(record) for record in self.records))

    def label(self, number: int) -> str:
        """What a class is called."""
        return (self.class_names[number] if number < len(self.class_names) else "") or str(number)


def run_of_readings(name: str, readings: Sequence[DetailedRecord], class_names: tuple[str, ...]) -> Run:
    """A run of what analysis read from dumps."""
    layered = _layered([dict(reading.record) for reading in readings])
    readings = [reading for reading in readings if of_penultimate([reading.record])]
    records = [dict(reading.record) for reading in readings]
    numbers = {name: index for index, name in enumerate(dict.fromkeys(map(name_of, records)))}
    pictures = [
        Picture(numbers[name_of(record)], str(record["split"]), list(reading.per_class), reading.portrait)
        for record, reading in zip(records, readings, strict=True)
    ]
    return Run(name, records, pictures, class_names, layered)


def run_of_records(name: str, records: Sequence[Record], class_names: tuple[str, ...]) -> Run:
    """A run of records from a file; those of single classes (`analyze --per-class`) become pictures."""
    whole = [record for record in records if record.get("class") is None]
    rows: dict[tuple[str, str], list[Record]] = {}
    for record in of_penultimate(records):
        if record.get("class") is not None:
            label = number(record, "class", name)
            if label is None or label < 0 or label != int(label):
                raise DataError(f"{name}: class is {record['class']!r}, where a whole number was expected")
            rows.setdefault((name_of(record), str(record.get("split"))), []).append({**record, "class": int(label)})
    places = [{name: held[0].get(name) for name in ("checkpoint", "step", "split")} for held in rows.values()]
    run = Run(name, of_penultimate(whole) or places, [], class_names, _layered(whole))
    numbers = {checkpoint: index for index, checkpoint in enumerate(run.checkpoints)}
    pictures = [Picture(numbers.get(at, 0), split, held, None) for (at, split), held in rows.items()]
    return replace(run, pictures=pictures)


def _layered(records: Sequence[Record]) -> tuple[Record, ...]:
    named = [record for record in records if record.get("layer") is not None and record.get("depth") is not None]
    return tuple(named) if len({record["layer"] for record in named}) > 1 else ()


def name_of(record: Record) -> str:
    """What the checkpoint of a record is called: its own name, else its step, else nothing."""
    if record.get("checkpoint") is not None:
        return str(record["checkpoint"])
    step = record.get("step")
    return "" if step is None else f"step {step:g}" if isinstance(step, float) else f"step {step}"


def common_axis(runs: Sequence[Run]) -> str:
    """What all runs are drawn along: what tells the checkpoints of most of them apart, else their order."""
    able = {name: sum(_tells_apart(run, name) for run in runs) for name in AXES}
    best = max(AXES, key=lambda name: able[name])
    return best if able[best] else ORDER


def placed(run: Run, axis: str) -> Run | None:
    """The run with its records numbered where the axis is their order; None where the axis does not tell them apart."""
    if axis == ORDER:
        numbers = {name: index for index, name in enumerate(run.checkpoints)}
        return replace(run, records=[{**record, ORDER: numbers[name_of(record)]} for record in run.records])
    return run if _tells_apart(run, axis) else None


def positions(run: Run, axis: str) -> list[float | None]:
    """Where each checkpoint of a run stands on the axis."""
    found: dict[str, float | None] = dict.fromkeys(run.checkpoints)
    for record in run.records:
        if found[name_of(record)] is None:
            found[name_of(record)] = position(record, axis, run.name)
    return list(found.values())


def _tells_apart(run: Run, axis: str) -> bool:
    seen: set[tuple[str | None, float]] = set()
    for record in run.records:
        place = position(record, axis, run.name)
        split = record.get("split")
        if place is None or (split, place) in seen:
            return False
        seen.add((split, place))
    return bool(seen)

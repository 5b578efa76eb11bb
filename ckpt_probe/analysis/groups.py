"""A group: the runs of one condition that differ in their seed, and what was measured in each of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt_probe.analysis.lines import metric_names, number, of_penultimate, read_lines
from ckpt_probe.analysis.series import read_series
from ckpt_probe.analysis.settings import Settings
from ckpt_probe.dumps import open_dump_series
from ckpt_probe.dumps.reading import SUFFIXES
from ckpt_probe.errors import DataError, listed

METRICS_FILE = "metrics.jsonl"
ENTRY_KINDS = "a run (metrics.jsonl), a directory of dumps, or a file of records (NAME.jsonl)"


@dataclass(frozen=True)
class Group:
    """The entries of a directory, by name; `others`: names in it that are no entry."""

    path: Path
    entries: Mapping[str, Path]
    others: Sequence[str]


@dataclass(frozen=True)
class Measured:
    """What one entry has at one step: a value for each metric."""

    step: int | None
    values: Mapping[str, float]


def open_group(path: Path | str) -> Group:
    """The entries of the directory `path`: runs, directories of dumps, and records files, in the order of their names.

    A run or a records file is given as its file, dumps as their directory. Names that begin with a dot are no entries.
    Raises DataError where there is no entry, where `path` is itself what an entry is, or two have the same name.
    """
    path = Path(path)
    if not path.is_dir():
        found = "a file" if path.exists() else "no such directory"
        raise DataError(f"{path}: {found}; a group is a directory with one entry per seed: {ENTRY_KINDS}")
    if _dumps_in(path) or (path / METRICS_FILE).exists():
        kind = "a directory of dumps" if _dumps_in(path) else "a run"
        raise DataError(f"{path}: is itself {kind}; pass the directory above it, which holds one such entry per seed")
    entries: dict[str, Path] = {}
    others: list[str] = []
    for one in sorted(entry for entry in path.iterdir() if not entry.name.startswith(".")):
        source, name = _source(one), one.name if one.is_dir() else one.stem
        if source is None:
            others.append(one.name)
        elif name in entries:
            raise DataError(f"{path}: two entries are called {name}; entries are paired by name: rename one")
        else:
            entries[name] = source
    if not entries:
        raise DataError(f"{path}: nothing to compare; expected one entry per seed: {ENTRY_KINDS}")
    return Group(path, entries, others)


def measure(source: Path, metrics: Sequence[str], *, split: str, step: int | None) -> Measured:
    """The values of an entry on one split, at `step`, or at its last step where that is None.

    Dumps are analyzed, with the cache beside them. Raises DataError, naming the entry and what there is, where split,
    step or metric is not there, a value is undefined, or several records stand at the step.
    """
    record = _of_dumps(source, split, step) if source.is_dir() else _of_lines(source, metrics, split, step)
    where = f"{source}: {split}"
    values = {}
    for metric in metrics:
        if metric not in record:
            raise DataError(f"{where}: no metric {metric!r}; there are: {listed(metric_names([record]), 40)}")
        value = number(record, metric, where)
        if value is None:
            reason = f" ({record['missing']})" if record.get("missing") else ""
            raise DataError(f"{where}: {metric} is undefined at step {record.get('step')}{reason}")
        values[metric] = value
    return Measured(_step(record, where), values)


def _source(entry: Path) -> Path | None:
    if entry.is_symlink() and not entry.exists():
        raise DataError(f"{entry}: a broken symbolic link; repair or remove it")
    if not entry.is_dir():
        return entry if entry.suffix == ".jsonl" else None
    if _dumps_in(entry):
        return entry
    lines = [file for file in sorted(entry.glob("*.jsonl")) if not file.name.startswith(".")]
    if entry / METRICS_FILE in lines:
        return entry / METRICS_FILE
    # What a path or its series writes: a directory with one file of records.
    return lines[0] if len(lines) == 1 else None


def _dumps_in(entry: Path) -> bool:
    try:
        return any(file.suffix in SUFFIXES and not file.name.startswith(".") for file in entry.iterdir())
    except OSError as error:
        raise DataError(f"{entry}: cannot be read: {error.strerror}; repair or remove it") from error


def _of_dumps(folder: Path, split: str, step: int | None) -> Mapping[str, Any]:
    members = open_dump_series(folder)
    wanted = _wanted([member.step for member in members], step, f"{folder}")
    chosen = [member for member in members if member.step == wanted]
    if len(chosen) > 1:
        raise DataError(f"{folder}: {len(chosen)} dumps {_at(wanted)}, expected one")
    [reading] = read_series(chosen[0].path, Settings(layers=False), splits=[split], cache=True)
    return reading.record


def _of_lines(file: Path, metrics: Sequence[str], split: str, step: int | None) -> Mapping[str, Any]:
    # A run's metrics also have a line for each logged step of training, which belongs to no split.
    records = [record for record in of_penultimate(read_lines(file)) if record.get("split") is not None]
    of_split = [record for record in records if record["split"] == split]
    if not of_split:
        splits = listed(list(dict.fromkeys(str(record["split"]) for record in records)))
        raise DataError(
            f"{file}: no record of split {split!r}; {f'there are: {splits}' if splits else 'nor of any other'}"
        )
    where = f"{file}: {split}"
    steps = [_step(record, where) for record in of_split]
    wanted = _wanted(steps, step, where)
    chosen = [record for record, one in zip(of_split, steps, strict=True) if one == wanted]
    if len({repr([record.get(metric) for metric in metrics]) for record in chosen}) > 1:
        raise DataError(f"{where}: {len(chosen)} records {_at(wanted)}, expected one")
    return chosen[0]


def _step(record: Mapping[str, Any], where: str) -> int | None:
    value = number(record, "step", where)
    return None if value is None else int(value)


def _wanted(steps: Sequence[int | None], step: int | None, where: str) -> int | None:
    # As a series is ordered: what has no step comes last.
    ordered = sorted(set(steps), key=lambda one: (one is None, one or 0))
    if step is not None and step not in steps:
        raise DataError(f"{where}: nothing at step {step}; there are: {listed([str(one) for one in ordered], 20)}")
    return ordered[-1] if step is None else step


def _at(step: int | None) -> str:
    return "without a step" if step is None else f"at step {step}"

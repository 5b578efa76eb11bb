"""Groups of runs: the runs of one condition that differ in their seed, and their values at one step."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ckpt_probe.analysis.entries import settled
from ckpt_probe.analysis.records import RECORD_SUFFIXES, metric_names, number, of_penultimate, read_lines
from ckpt_probe.analysis.series import is_recorded, read_series, without_failed
from ckpt_probe.analysis.settings import Settings
from ckpt_probe.dumps import has_dumps, open_dump_series
from ckpt_probe.errors import DataError, listed
from ckpt_probe.groups import named_paths, seed_names
from ckpt_probe.moments.record import DetailedRecord
from ckpt_probe.moments.selection import find_metrics, metrics_in, suggest_metrics, values_at_collapse
from ckpt_probe.progress import Progress

METRICS_FILE = "metrics.jsonl"
MEMBER_KINDS = "a run (metrics.jsonl), a directory of dumps, or a file of records (NAME.jsonl)"


@dataclass(frozen=True)
class RunGroup:
    """A directory with one run per seed.

    Attributes:
        path: The directory.
        members: Source of each run by its name: a file of records, or a directory of dumps.
        others: Names in the directory that are not runs.
        name: Name of the group, if it is not that of the directory.
    """

    path: Path
    members: Mapping[str, Path]
    others: Sequence[str]
    name: str | None = None


@dataclass(frozen=True)
class Measurement:
    """Values of the metrics of one run at one step.

    Attributes:
        step: The step.
        values: Value of each metric.
        at_collapse: Value of each metric at neural collapse, as far as known.
        undefined: Sentence about each metric without a value.
    """

    step: int | None
    values: Mapping[str, float]
    at_collapse: Mapping[str, float] = field(default_factory=dict)
    undefined: Mapping[str, str] = field(default_factory=dict)


def open_groups(sources: Sequence[Path | str]) -> list[RunGroup]:
    """Open groups: directories with one run per seed, a directory of such directories, NAME=DIR or NAME=PATTERN.

    Raises:
        DataError: As `open_group`.
        UsageError: If a pattern matches nothing.
    """
    groups: list[RunGroup] = []
    for source in sources:
        name, paths = named_paths(str(source))
        path = Path(paths[0])
        if len(paths) > 1 or not path.is_dir() or (name is not None and _is_run(path)):
            known = {seed: _source(Path(each)) for seed, each in zip(seed_names(paths), paths, strict=True)}
            if name is None or None in known.values():
                groups.append(open_group(path))
            else:
                groups.append(RunGroup(path.parent, {seed: each for seed, each in known.items() if each}, (), name))
            continue
        groups += [open_group(child) for child in _groups_in(path)] or [replace(open_group(path), name=name)]
    return groups


def open_group(path: Path | str) -> RunGroup:
    """Find the runs in a directory, in the order of their names; names that begin with a dot are skipped.

    Raises:
        DataError: If the directory contains no run, is itself a run, or has two runs of the same name.
    """
    path = Path(path)
    if not path.is_dir():
        problem = "a file" if path.exists() else "no such directory"
        raise DataError(f"{path}: {problem}; a group is a directory with one entry per seed: {MEMBER_KINDS}")
    if _is_run(path):
        kind = "a directory of dumps" if has_dumps(path) else "a run"
        raise DataError(f"{path}: is itself {kind}; pass the directory above it, which holds one such entry per seed")
    members: dict[str, Path] = {}
    others: list[str] = []
    for child in sorted(child for child in path.iterdir() if not child.name.startswith(".")):
        source, name = _source(child), child.name if child.is_dir() else child.stem
        if source is None:
            others.append(child.name)
        elif name in members:
            raise DataError(f"{path}: two entries are called {name}; entries are paired by name: rename one")
        else:
            members[name] = source
    if not members:
        raise DataError(f"{path}: nothing to compare; expected one entry per seed: {MEMBER_KINDS}")
    return RunGroup(path, members, others)


def measure(
    source: Path, metrics: Sequence[str], *, split: str, step: int | None, required: bool = True
) -> Measurement:
    """Read the values of a run on one split; dumps are analyzed, with the cache of records.

    Args:
        source: File of records, or directory of dumps.
        metrics: Names, labels or patterns of the metrics, as for `find_metrics`.
        split: Name of the split.
        step: Training step; None for the last one.
        required: Whether a name without a metric is an error, and not a metric without a value.

    Raises:
        DataError: If split or step are missing, a value is no number, or several records have the step.
    """
    record = read_dump(source, split, step).record if source.is_dir() else _record_in(source, metrics, split, step)
    label = f"{source}: {split}"
    step, record = _step(record, label), settled(dict(record))
    values, undefined = {}, {}
    names = metric_names([record])
    for metric in find_metrics(metrics, names):
        if metric not in record:
            undefined[metric] = f"{label}: no metric {metric!r}{suggest_metrics(metric, names)}"
            if required:
                raise DataError(undefined[metric])
        value = number(record, metric, label)
        if value is None:
            reason = f" ({record['missing']})" if record.get("missing") else ""
            undefined.setdefault(metric, f"{label}: {metric} is undefined at step {record.get('step')}{reason}")
        else:
            values[metric] = value
    return Measurement(step, values, collapse_values(record, values), undefined)


def collapse_values(record: Mapping[str, Any], names: Iterable[str]) -> dict[str, float]:
    """Return the values at neural collapse of the named metrics of a record, as far as known."""
    known = {
        metric.name: value for metric in metrics_in([record]) for value in values_at_collapse(metric, [record])[:1]
    }
    return {name: float(value) for name in names if (value := known.get(name)) is not None}


def read_course(
    source: Path, metrics: Sequence[str], *, split: str, progress: Progress
) -> dict[int, Mapping[str, Any]]:
    """Read the records of a run on one split at every step; dumps are analyzed, with the cache of records.

    Args:
        source: File of records, or directory of dumps.
        metrics: Names of metrics; of several records at a step, those must be equal.
        split: Name of the split.
        progress: Receives a message on dumps that cannot be analyzed, which are left out.

    Returns:
        The records by step, in ascending order, without those that have no step.

    Raises:
        DataError: If a value is not a number, or several records have the step.
    """
    label = f"{source}: {split}"
    if source.is_dir():
        readings = read_series(source, Settings(layers=False), splits=[split], cache=True)
        analyzed, _ = without_failed(readings, progress)
        records: Iterable[Mapping[str, Any]] = [reading.record for reading in analyzed]
    else:
        records = [record for record in of_penultimate(read_lines(source)) if record.get("split") == split]
    course: dict[int, Mapping[str, Any]] = {}
    for record in records:
        step, record = _step(record, label), settled(dict(record))
        values = [number(record, metric, label) for metric in metrics]
        if step is None:
            continue
        if step in course and values != [course[step].get(metric) for metric in metrics]:
            raise DataError(f"{label}: several records at step {step}, expected one")
        course[step] = record
    return dict(sorted(course.items()))


def _groups_in(directory: Path) -> list[Path]:
    """Return the groups in a directory of groups; an empty list for a directory with one run per seed."""
    children = [] if is_recorded(directory) else sorted(directory.iterdir())
    below = [child for child in children if child.is_dir() and any(map(is_recorded, child.iterdir()))]
    # A directory with one file of records is a run, and beside groups of several runs a group of one.
    alone = [child for child in children if is_recorded(child)]
    return below if set(below) > set(alone) and not any(map(_is_run, alone)) else []


def _is_run(directory: Path) -> bool:
    return has_dumps(directory) or (directory / METRICS_FILE).exists()


def _source(child: Path) -> Path | None:
    if child.is_symlink() and not child.exists():
        raise DataError(f"{child}: a broken symbolic link; repair or remove it")
    if not child.is_dir():
        return child if child.suffix.lower() in RECORD_SUFFIXES else None
    if has_dumps(child):
        return child
    files = [file for file in sorted(child.glob("*.jsonl")) if not file.name.startswith(".")]
    if child / METRICS_FILE in files:
        return child / METRICS_FILE
    # The directory of a path, or of a series of paths, has one file of records.
    return files[0] if len(files) == 1 else None


def read_dump(directory: Path, split: str, step: int | None, *, errors: bool = False) -> DetailedRecord:
    """Analyze the dump of a run at one step, with the cache of records.

    Args:
        directory: Directory of dumps.
        split: Name of the split.
        step: Training step; None for the last one.
        errors: Whether to add standard errors, with the influences of rows.

    Raises:
        DataError: If there is no dump at the step, or several.
    """
    dumps = open_dump_series(directory)
    wanted = _chosen_step([dump.step for dump in dumps], step, f"{directory}")
    matching = [dump for dump in dumps if dump.step == wanted]
    if len(matching) > 1:
        raise DataError(f"{directory}: {len(matching)} dumps {_at(wanted)}, expected one")
    [detailed] = read_series(matching[0].path, Settings(layers=False, errors=errors), splits=[split], cache=True)
    return detailed


def _record_in(file: Path, metrics: Sequence[str], split: str, step: int | None) -> Mapping[str, Any]:
    # The metrics of a run also have a line for each logged training step, without a split.
    lines = of_penultimate(read_lines(file))
    records = [record for record in lines if record.get("split") is not None]
    # Records of weights have no split at all.
    of_split = [record for record in records if record["split"] == split] if records else lines
    if not of_split:
        splits = listed(list(dict.fromkeys(str(record["split"]) for record in records)))
        available = f"there are: {splits}" if splits else "nor of any other"
        raise DataError(f"{file}: no record of split {split!r}; {available}")
    label = f"{file}: {split}"
    steps = [_step(record, label) for record in of_split]
    wanted = _chosen_step(steps, step, label)
    matching = [record for record, its_step in zip(of_split, steps, strict=True) if its_step == wanted]
    names = find_metrics(metrics, metric_names(matching))
    if len({repr([record.get(name) for name in names]) for record in matching}) > 1:
        raise DataError(f"{label}: {len(matching)} records {_at(wanted)}, expected one")
    return matching[0]


def _step(record: Mapping[str, Any], label: str) -> int | None:
    value = number(record, "step", label)
    if value is not None and not value.is_integer():
        raise DataError(f"{label}: step is {value:g}, expected a whole number")
    return None if value is None else int(value)


def _chosen_step(steps: Sequence[int | None], step: int | None, label: str) -> int | None:
    """Return the step, or the last of `steps` if it is None; records without a step come last, as in a series."""
    if step is None:
        return max(steps, key=lambda each: (each is None, each or 0))
    if step not in steps:
        ordered = sorted(set(steps), key=lambda each: (each is None, each or 0))
        raise DataError(f"{label}: nothing at step {step}; there are: {listed([str(each) for each in ordered], 20)}")
    return step


def _at(step: int | None) -> str:
    return "without a step" if step is None else f"at step {step}"

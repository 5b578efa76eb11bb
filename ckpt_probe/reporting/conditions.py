"""Records of runs by condition, together those that differ in their seed, for figures and other programs."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from ckpt_probe.analysis import Records
from ckpt_probe.analysis.entries import POSITION
from ckpt_probe.analysis.records import by_run, grouped_by, metric_names, number, of_penultimate
from ckpt_probe.analysis.series import is_recorded, records_of
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.files import refuse_existing, replacing_directory
from ckpt_probe.groups import group_runs, named_paths, seed_names
from ckpt_probe.keywords import as_sequence
from ckpt_probe.moments.selection import metrics_in, values_at_collapse
from ckpt_probe.plugins import require_extra
from ckpt_probe.progress import NullProgress, Progress
from ckpt_probe.reporting.formats import require_writable, write_records
from ckpt_probe.reporting.plots.curves import Record, Runs

RecordsSource = Path | str | Iterable[Any]
"""A file or directory of records, records, or several of either."""


def conditions_of(
    records: RecordsSource | Mapping[str, RecordsSource], progress: Progress | None = None
) -> tuple[Mapping[str, Runs], dict[str, list[Path]]]:
    """Return the records of each run of each condition, and the files of each condition if they were read from files.

    Dumps that cannot be analyzed are left out, with a message.

    Args:
        records: Records, or files and directories of them; texts are read as by `open_conditions`.
        progress: Receives messages and a bar.

    Raises:
        DataError: If a file cannot be read or has no record.
    """
    if isinstance(records, Mapping):
        return {name: _runs(source) for name, source in records.items()}, {}
    sources, progress = as_sequence(records) or (), progress or NullProgress()
    if not all(isinstance(source, Path | str) for source in sources):
        return {"records": _runs(sources)}, {}
    files = open_conditions([*map(str, sources)])
    conditions: dict[str, list[Records]] = {}
    with progress.task("records", sum(map(len, files.values())), "files") as bar:
        for label, path in ((label, path) for label, paths in files.items() for path in paths):
            rows = records_of(path, progress)
            curves = of_penultimate(rows)
            if len(curves) < len(rows):
                progress.message(
                    f"{path}: {len(rows) - len(curves)} records of other layers than the penultimate are left out"
                )
            for (group, _), part in by_run(curves).items():
                conditions.setdefault(label if group is None else group, []).append(Records(part))
            bar.advance()
    return conditions, files


def open_conditions(texts: Sequence[str]) -> dict[str, list[Path]]:
    """Parse PATH, NAME=PATH, NAME=PATH1,PATH2 and NAME='GLOB' into the files of each condition by its label.

    A condition without a NAME gets the shortest label that distinguishes its files from the others. A directory of runs
    is a condition with one path per seed, and a directory of such directories has several (see `ckpt_probe.groups`).

    Raises:
        DataError: If one of several paths is neither a file nor a directory of records or dumps.
        UsageError: If a glob matches nothing, or two conditions have the same name.
    """
    named = [named_paths(text) for text in texts]
    named_files = {path for _, paths in named for path in paths}

    def is_run(path: Path) -> bool:
        return is_recorded(path) or (path in named_files and not path.is_dir())

    runs = group_runs(named, is_run, "dumps or records", lambda _: None, repeats=True)
    groups = grouped_by(runs, lambda run: run.group or seed_names([run.path])[0])
    return {label: [Path(run.path) for run in of_group] for label, of_group in groups.items()}


def labelled(groups: Mapping[str, Runs], files: Mapping[str, Sequence[Path]]) -> Iterator[Record]:
    """Yield all records with group and seed, if there are several groups or seeds; those that have both keep them."""
    for name, runs in groups.items():
        seeds = seed_names(files[name]) if name in files and len(files[name]) == len(runs) > 1 else [None] * len(runs)
        for seed, records in zip(seeds, runs, strict=True):
            labels = {"group": name} if len(groups) > 1 or seed is not None else {}
            labels |= {} if seed is None else {"seed": seed}
            yield from ({**labels, **record} for record in records)


def by_file(conditions: Mapping[str, Runs]) -> dict[str, Sequence[Record]]:
    """Return the records of each file by name: its condition, numbered if that has several files (seeds)."""
    return {
        label if len(files) == 1 else f"{label}-{number}": group
        for label, files in conditions.items()
        for number, group in enumerate(files)
    }


def _runs(source: RecordsSource) -> list[Sequence[Record]]:
    """Return the records of each seed of a condition."""
    if isinstance(source, Path | str):
        return [run for runs in conditions_of(source)[0].values() for run in runs]
    items = as_sequence(source) or ()
    if isinstance(source, Records) or all(isinstance(item, Mapping) for item in items):
        return [of_penultimate(items)]
    return [run for item in items for run in _runs(item)]


def export(
    records: RecordsSource | Mapping[str, RecordsSource],
    out: Path | str | None = None,
    *,
    tensorboard: Path | str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Mapping[str, Any]]:
    """Convert records to the formats of other programs: Parquet, CSV, event files of TensorBoard.

    Args:
        records: Records, a data frame, files of records, dumps or directories of runs, or several; NAME=FILE or a
            mapping names them. If there are several, entries `group` and `seed` of the records name them.
        out: File to write: Parquet or CSV by its suffix, else JSON Lines.
        tensorboard: Directory for event files, one run per split and per file of records.
        overwrite: Whether to replace an existing file and directory.
        progress: Receives messages and bars.

    Returns:
        The records.

    Raises:
        UsageError: If there is no output, or one exists and `overwrite` is false.
        DataError: If records cannot be read, or do not fit a format.
    """
    if out is None and tensorboard is None:
        raise UsageError('export: choose an output: `out="records.parquet"`, `tensorboard="DIR"`, or both')
    if out is not None:
        require_writable(Path(out), overwrite=overwrite)
    progress = progress or NullProgress()
    conditions, files = conditions_of(records, progress)
    if tensorboard is not None:
        values, notes = write_event_files(by_file(conditions), tensorboard, overwrite=overwrite, progress=progress)
        for note in notes:
            progress.message(note)
        progress.message(f"{tensorboard}: {values} values; view them with: tensorboard --logdir {tensorboard}")
    rows = list(labelled(conditions, files))
    if out is not None:
        write_records(rows, Path(out), overwrite=overwrite)
        progress.message(f"{out}: {len(rows)} records")
    return rows


Points = dict[tuple[str, int], float]
"""The values of one run by metric and step."""

AT_COLLAPSE = "at-collapse"
"""Name of the run with the values at neural collapse, which TensorBoard draws as a line in each chart."""


def write_event_files(
    series: Mapping[str, Sequence[Record]],
    directory: Path | str,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[int, list[str]]:
    """Write records into event files of TensorBoard below a directory, atomically.

    A run is named CONDITION/SPLIT, or SPLIT if there is one condition. Dots in the names of metrics become slashes
    (class/mir), by which TensorBoard groups its charts.

    Args:
        series: Records of each condition.
        directory: Directory to create.
        overwrite: Whether to replace an existing directory.
        progress: Progress to report to.

    Returns:
        The number of written values, and notes on omitted records.

    Raises:
        UsageError: If tensorboard is not installed, or the directory exists.
        DataError: If no record has a step, or a metric has two values at one step of one run.
    """
    directory = Path(directory)
    refuse_existing(directory, overwrite=overwrite, directory=True)
    require_extra("tensorboard", "tensorboard")
    runs, notes = _scalars(series)
    from torch.utils.tensorboard import SummaryWriter

    with (
        replacing_directory(directory, overwrite=overwrite) as temporary,
        (progress or NullProgress()).task("event files", sum(map(len, runs.values())), "values") as bar,
    ):
        for run, points in runs.items():
            with closing(SummaryWriter(temporary / run)) as writer:
                for (name, step), value in points.items():
                    writer.add_scalar(name.replace(".", "/"), value, step)
                    bar.advance()
    return sum(len(points) for run, points in runs.items() if not run.endswith(AT_COLLAPSE)), notes


def _scalars(series: Mapping[str, Sequence[Record]]) -> tuple[dict[str, Points], list[str]]:
    runs: dict[str, Points] = {}
    notes = []
    for condition, records in series.items():
        prefix = [condition] if len(series) > 1 else []
        metrics = metric_names(records, errors=True)
        stepped = [record for record in records if number(record, "step", condition) is not None]
        if len(stepped) < len(records):
            notes.append(f"{condition}: {len(records) - len(stepped)} of {len(records)} records have no step, left out")
        absent = 0
        for record in stepped:
            if record["step"] != int(record["step"]) or abs(record["step"]) >= 2**63:
                raise DataError(f"{condition}: step {record['step']:g}: TensorBoard has whole steps of at most 64 bits")
            run = _path([*prefix, *_run_parts(record)])
            step = int(record["step"])
            for name in filter(record.__contains__, metrics):
                if (value := number(record, name, condition)) is None:
                    absent += 1
                    continue
                points = runs.setdefault(run, {})
                if (name, step) in points:
                    raise DataError(
                        f"{run}: {name} has several values at step {step}; name the files apart (NAME=FILE)"
                    )
                points[name, step] = value
        if absent:
            notes.append(f"{condition}: {absent} values are missing")
        at_collapse = {
            (metric.name, int(record["step"])): value
            for metric in metrics_in(stepped)
            for record in stepped
            for value in values_at_collapse(metric, [record])
            if value is not None
        }
        if at_collapse:
            runs[_path([*prefix, AT_COLLAPSE])] = at_collapse
    if not runs:
        raise DataError("no record has a step and a number: there is nothing to export")
    return runs, notes


def _run_parts(record: Record) -> list[str]:
    others = [name for name in POSITION if name not in {"checkpoint", "step", "split"} and record.get(name) is not None]
    split = record.get("split")
    return [*([] if split is None else [str(split)]), *(f"{name}-{record[name]}" for name in others)]


def _path(parts: Sequence[str]) -> str:
    # Names come from untrusted files and must not lead out of the directory.
    return "/".join(re.sub(r"[^\w=+.-]", "_", part).lstrip(".") or "_" for part in parts) or "records"

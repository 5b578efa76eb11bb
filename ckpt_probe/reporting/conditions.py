"""Conditions of a figure or an export: records of the runs that differ in their seed, by the name of their group."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ckpt_probe.analysis import Records
from ckpt_probe.analysis.records import by_run, of_penultimate
from ckpt_probe.analysis.series import is_recorded, records_of
from ckpt_probe.errors import UsageError
from ckpt_probe.groups import group_runs, named_paths, seed_names
from ckpt_probe.keywords import as_sequence
from ckpt_probe.progress import NullProgress, Progress
from ckpt_probe.reporting.plots.curves import Record, Runs

RecordsSource = Path | str | Iterable[Any]
"""A file or directory of records, records, or several of either."""


def conditions_of(records: RecordsSource | Mapping[str, RecordsSource]) -> Mapping[str, Runs]:
    """Return the records of each run of each condition, of records, or of files and directories of them."""
    if isinstance(records, Mapping):
        return {name: _runs(source) for name, source in records.items()}
    sources = as_sequence(records) or ()
    if not all(isinstance(source, Path | str) for source in sources):
        return {"records": _runs(sources)}
    return read_conditions(open_conditions([*map(str, sources)]))


def read_conditions(files: Mapping[str, Sequence[Path]], progress: Progress | None = None) -> dict[str, list[Records]]:
    """Read the records of every file of each condition; raise DataError if a file cannot be read or has no record.

    Dumps that cannot be analyzed are left out, with a message.
    """
    progress = progress or NullProgress()
    records: dict[str, list[Records]] = {}
    with progress.task("records", sum(map(len, files.values())), "files") as bar:
        for label, paths in files.items():
            for path in paths:
                rows = records_of(path, progress)
                curves = of_penultimate(rows)
                if len(curves) < len(rows):
                    progress.message(
                        f"{path}: {len(rows) - len(curves)} records of other layers than the penultimate are left out"
                    )
                for (group, _), part in by_run(curves).items():
                    records.setdefault(label if group is None else group, []).append(Records(part))
                bar.advance()
    return records


def open_conditions(texts: Sequence[str]) -> dict[str, list[Path]]:
    """Parse PATH, NAME=PATH, NAME=PATH1,PATH2 and NAME='GLOB' into the files of each condition by its label.

    A condition without a NAME gets the shortest label that distinguishes its files from the others. A directory of runs
    is a condition with one path per seed, and a directory of such directories has several (see `ckpt_probe.groups`).

    Raises:
        UsageError: If a glob matches nothing, or two conditions have the same name.
    """
    named = [condition for text in texts for condition in _files_of(*named_paths(text))]
    derived = iter(_labels([files for name, files in named if name is None]))
    labels = [name or next(derived) for name, _ in named]
    repeated = next((label for label in labels if labels.count(label) > 1), None)
    if repeated is not None:
        raise UsageError(f"two of the files are called {repeated}; give each a name, as NAME=FILE")
    return dict(zip(labels, (files for _, files in named), strict=True))


def _labels(files: Sequence[Sequence[Path]]) -> list[str]:
    # The first scheme that gives distinct labels; a run's metrics.jsonl is labelled by its directory.
    schemes = [
        [paths[0].stem if len(paths) == 1 else paths[0].parent.name for paths in files],
        [paths[0].resolve().parent.name for paths in files],
        [paths[0].parent.as_posix() for paths in files],
    ]
    different = [labels for labels in schemes if len(set(labels)) == len(labels) and all(labels)]
    return different[0] if different else [paths[0].as_posix() for paths in files]


def _files_of(name: str | None, paths: Sequence[Path | str]) -> list[tuple[str | None, list[Path]]]:
    """Return the paths, or those of every group in them if they are one directory of runs, with the group's name."""
    files = [Path(path) for path in paths]
    if len(files) != 1 or not files[0].is_dir() or is_recorded(files[0]):
        return [(name, files)]
    groups: dict[str | None, list[Path]] = {}
    for run in group_runs([(name, [*files])], is_recorded, "dumps or records", lambda _: None):
        groups.setdefault(run.group or name, []).append(Path(run.path))
    return [*groups.items()]


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
        return [run for runs in conditions_of(source).values() for run in runs]
    items = list(source)
    if isinstance(source, Records) or all(isinstance(item, Mapping) for item in items):
        return [of_penultimate(items)]
    return [run for item in items for run in _runs(item)]

"""Runs by name: directories of dumps, groups with one directory of dumps for each seed, and groups that are named."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckpt_probe.analysis.groups import has_dumps
from ckpt_probe.errors import UsageError
from ckpt_probe.files import distinct_names
from ckpt_probe.keywords import as_sequence
from ckpt_probe.series import natural

Runs = Path | str | Sequence[Path | str] | Mapping[str, Path | str | Sequence[Path | str]]


@dataclass(frozen=True)
class RunSource:
    """Dumps of a run.

    Attributes:
        name: Name of the run.
        path: A dump, or a directory of dumps.
        group: Name of the group to which the run belongs, or None.
        seed: Name of the run in its group, or None.
    """

    name: str
    path: Path | str
    group: str | None = None
    seed: str | None = None

    @property
    def identity(self) -> dict[str, str]:
        """Return the entries of a record that name the run."""
        entries = {"run": self.name, "group": self.group, "seed": self.seed}
        return {name: value for name, value in entries.items() if value is not None}


def open_runs(dumps: Runs) -> list[RunSource]:
    """Return the runs that paths name.

    Args:
        dumps: Dumps, directories of dumps, or directories with one directory of dumps for each seed: groups. A mapping
            names them; several paths of one name are a group.

    Raises:
        UsageError: If two runs have the same name, or the same dumps occur twice.
    """
    if isinstance(dumps, Mapping):
        pairs = [(name, as_sequence(value) or ()) for name, value in dumps.items()]
    else:
        paths = as_sequence(dumps) or ()
        names = distinct_names([Path(path).with_suffix("") for path in paths])
        if len(set(names)) < len(names):
            raise UsageError(f"{max(paths, key=paths.count)}: the same dumps twice; name each once")
        pairs = [(name, (path,)) for name, path in zip(names, paths, strict=True)]
    return [run for name, paths in pairs for run in _runs(name, paths)]


def _runs(name: str, paths: Sequence[Path | str]) -> Iterator[RunSource]:
    if len(paths) == 1:
        directory = Path(paths[0])
        seeds = [] if not directory.is_dir() or has_dumps(directory) else _directories_of_dumps(directory)
        if not seeds:
            yield RunSource(name, paths[0])
        for seed in seeds:
            yield RunSource(f"{name}/{seed.name}", seed, name, seed.name)
        return
    for seed, path in zip(distinct_names([Path(path).with_suffix("") for path in paths]), paths, strict=True):
        yield RunSource(f"{name}/{seed}", path, name, seed)


def _directories_of_dumps(directory: Path) -> list[Path]:
    children = [child for child in directory.iterdir() if child.is_dir() and not child.name.startswith(".")]
    return sorted((child for child in children if has_dumps(child)), key=lambda child: natural(child.name))

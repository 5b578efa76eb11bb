"""Groups of runs: the runs of one recipe that differ in their seed, named by directories, trees of them, or patterns.

A directory with one run per seed is a group, and a directory of such directories a tree of groups. `NAME=PATTERN` is a
group whose runs are the paths that match.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ckpt_probe.addresses import is_address
from ckpt_probe.errors import DataError, UsageError, listed
from ckpt_probe.files import distinct_names
from ckpt_probe.keywords import as_paths
from ckpt_probe.series import natural

Sources = Path | str | Iterable[Path | str] | Mapping[str, Path | str | Iterable[Path | str]]
"""Paths or texts of the command line, one or several; or a mapping from names of groups to paths."""

OF_RUNS = frozenset({"metrics.jsonl", "records.jsonl", "barriers.jsonl", "points.jsonl", "checkpoints"})
"""Files and directories in the directory of a run or a path, which is named after that directory."""


@dataclass(frozen=True)
class GroupedRun:
    """A run and the group to which it belongs.

    Attributes:
        path: Path of the run, or its address.
        group: Name of its group, None for a run alone.
        seed: Name of the run in its group, None for a run that is its whole group.
    """

    path: Path | str
    group: str | None = None
    seed: str | None = None

    @property
    def labels(self) -> dict[str, str]:
        """Return `group` and `seed` as entries of a record, as far as they are known."""
        return {name: value for name, value in (("group", self.group), ("seed", self.seed)) if value is not None}

    @property
    def name(self) -> str:
        """Return the name of the run, GROUP/SEED; "" for a run alone."""
        return "/".join(self.labels.values())


def find_runs(
    sources: Sources, is_run: Callable[[Path], bool], expected: str, say: Callable[[str], None] = print
) -> list[GroupedRun]:
    """Find the runs of sources and the groups to which they belong.

    A path is a run; or a directory of runs, which is a group with one run per seed; or a directory of such directories,
    each of which is a group. In a text NAME=PATH, NAME=PATH1,PATH2 or NAME=PATTERN, the name is that of the group and
    every path is one of its runs.

    Args:
        sources: Paths or texts, or a mapping from names of groups to paths.
        is_run: Whether a path is one run.
        expected: Description of a run, for messages.
        say: Receives a message about names in directories that are not runs.

    Returns:
        The runs in the order of the sources, those of a directory in natural order. A single run without a name has no
        group. Runs that are their whole group have no seed.

    Raises:
        DataError: If one of several paths is not a run. A single path that is no run is returned, so that its reader
            can raise a more precise error.
        UsageError: If a pattern matches nothing, two groups have one name, or a run occurs twice.
    """
    return group_runs(named_sources(sources), is_run, expected, say)


def group_runs(
    named: Iterable[tuple[str | None, list[Path | str]]],
    is_run: Callable[[Path], bool],
    expected: str,
    say: Callable[[str], None] = print,
    *,
    repeats: bool = False,
) -> list[GroupedRun]:
    """Find the runs of paths with the name of their group, None without one; otherwise as `find_runs`.

    `repeats` allows that a run occurs twice.
    """
    groups = [group for name, paths in named for group in _groups_of(name, paths, is_run, expected, say)]
    if not groups:
        raise UsageError(f"nothing to read; expected {expected}")
    if len(groups) == 1 and groups[0].name is None and len(groups[0].runs) == 1:
        return [GroupedRun(groups[0].runs[0])]
    derived = iter(distinct_names([_naming(group.path) for group in groups if group.name is None]))
    names = [group.name or next(derived) for group in groups]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"two sources are called {repeated}; name each source once (NAME=PATH)")
    runs = [
        GroupedRun(path, name, seed)
        for name, group in zip(names, groups, strict=True)
        for path, seed in zip(group.runs, group.seeds(), strict=True)
    ]
    paths = [str(run.path if is_address(run.path) else Path(run.path).resolve()) for run in runs]
    if not repeats and (twice := next((path for path in paths if paths.count(path) > 1), None)):
        raise UsageError(f"two sources are read from {twice}; name each source once (NAME=PATH)")
    return runs


def seed_names(paths: Iterable[Path | str]) -> list[str]:
    """Return the names of the runs of a group by their paths: the fewest last parts that distinguish them."""
    return distinct_names([_naming(Path(path)) for path in paths])


@dataclass(frozen=True)
class _Group:
    """Runs below one name. name: None for that of `path`. directory: whether the runs are the entries of `path`."""

    name: str | None
    path: Path
    runs: list[Path | str]
    directory: bool = False

    def seeds(self) -> list[str | None]:
        if len(self.runs) == 1 and not self.directory:
            return [None]
        return [*seed_names(self.runs)]


def _groups_of(
    name: str | None,
    paths: list[Path | str],
    is_run: Callable[[Path], bool],
    expected: str,
    say: Callable[[str], None],
) -> list[_Group]:
    """Return the groups of one source: its name if it has one, and its paths."""
    path = Path(paths[0])
    if len(paths) != 1 or is_address(paths[0]):
        if wrong := next((each for each in paths if not is_address(each) and not is_run(Path(each))), None):
            raise DataError(f"{wrong}: not a run; expected {expected}")
        return [_Group(name, path.parent if len(paths) > 1 else path, [*paths])]
    if not path.is_dir() or is_run(path):
        return [_Group(name, path, [path])]
    runs, others = _parted(path, is_run)
    parted = {child: _parted(child, is_run) for child in others if child.is_dir()}
    below = {child: inside for child, (inside, _) in parted.items() if inside}
    ignored = {path: [child for child in others if child not in below] if runs or below else []}
    for directory, names in {**ignored, **{child: parted[child][1] for child in below}}.items():
        if names:
            left_out = listed([each.name for each in names])
            say(f"{directory}: {len(names)} names are neither runs nor groups and were left out: {left_out}")
    if not below:
        # The caller knows best why a path is no run.
        return [_Group(name, path, [*runs] or [path], directory=bool(runs))]
    prefix = "" if name is None else f"{name}/"
    inside = {**{child: _only_run(child) for child in runs}, **below}
    children = sorted(inside, key=lambda child: natural(child.name))
    return [_Group(f"{prefix}{each.name}", each, [*inside[each]] or [each], bool(inside[each])) for each in children]


def _only_run(directory: Path) -> list[Path]:
    """Return the file of records of a group of one run, which itself also is a run; otherwise an empty list."""
    files = [each for each in directory.iterdir() if not each.name.startswith(".")] if directory.is_dir() else []
    return files if len(files) == 1 and files[0].suffix == ".jsonl" and files[0].name not in OF_RUNS else []


def _parted(directory: Path, is_run: Callable[[Path], bool]) -> tuple[list[Path], list[Path]]:
    """Return the entries of a directory that are runs, and the others; hidden ones are in neither list."""
    try:
        entries = [entry for entry in directory.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{directory}: cannot be read: {error.strerror}") from error
    if broken := next((entry for entry in entries if entry.is_symlink() and not entry.exists()), None):
        raise DataError(f"{broken}: a broken symbolic link; repair or remove it")
    entries.sort(key=lambda entry: natural(entry.name))
    runs = [entry for entry in entries if is_run(entry)]
    return runs, [entry for entry in entries if entry not in runs]


def named_paths(text: str) -> tuple[str | None, list[Path | str]]:
    """Split a text PATH, NAME=PATH, NAME=PATH1,PATH2 or NAME=PATTERN into a name, None without one, and paths.

    Raises:
        UsageError: If a pattern matches nothing.
    """
    if is_address(text) or _exists(text):
        return None, [text if is_address(text) else Path(text)]
    name, separator, rest = text.partition("=")
    if not separator or not name or "/" in name:
        return None, _matching(text)
    parts = [rest] if is_address(rest) else rest.split(",")
    return name, [path for part in parts for path in _matching(part.strip())]


def named_sources(sources: Sources) -> Iterator[tuple[str | None, list[Path | str]]]:
    """Yield the name, None without one, and the paths of each source; texts are read as by `named_paths`."""
    if isinstance(sources, Mapping):
        for name, paths in sources.items():
            yield str(name), [each for path in as_paths(paths) for each in _matching(path)]
        return
    for source in as_paths(sources):
        yield named_paths(source) if isinstance(source, str) else (None, [source])


def _matching(text: Path | str) -> list[Path | str]:
    if isinstance(text, Path) or is_address(text):
        return [text]
    if not re.search(r"[*?[]", text) or _exists(text):
        return [Path(text)]
    pattern = Path(text)
    matches = sorted(
        Path(pattern.anchor or ".").glob(pattern.relative_to(pattern.anchor).as_posix()),
        key=lambda path: natural(path.as_posix()),
    )
    if not matches:
        raise UsageError(f"{text}: no file matches this pattern")
    return [*matches]


def _naming(path: Path) -> Path:
    """Return the path by which a run is named: the directory of a run for a file in it, a file without its suffix."""
    if path.name in OF_RUNS:
        return path.resolve().parent
    return path if path.is_dir() else path.with_suffix("")


def _exists(text: str) -> bool:
    # A text may be longer than a file name can be, such as a list of many files.
    try:
        return Path(text).exists()
    except OSError:
        return False

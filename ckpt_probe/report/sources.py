"""What a report is made of: dumps, records, paths and planes, told by what is in them, whatever they are called."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt_probe.analysis import ENTRIES, Record, read_records
from ckpt_probe.analysis.entries import REFERENCES
from ckpt_probe.analysis.lines import number
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.files import distinct_names, read_object, require_regular
from ckpt_probe.paths import PlaneResult
from ckpt_probe.paths.ledger import PLAN_FILE, POINTS_FILE
from ckpt_probe.paths.positions import barriers

DUMP, RECORDS, PATH, PLANE = "dumps", "records", "path", "plane"
KINDS = (
    "dumps (.h5, or a directory of them), records (.jsonl, or a run's directory), the directory of a path or a plane"
)
HDF5 = b"\x89HDF\r\n\x1a\n"
SUFFIXES = frozenset({".h5", ".hdf5"})
RECORD_FILES = ("metrics.jsonl", "records.jsonl", "barriers.jsonl")
"""Files of records that name their directory: of a run, of what runs inside training, of a series of paths."""

OF_OURS = "the plan or summary of a path or a plane"


@dataclass(frozen=True)
class Source:
    """One thing that a report shows: what kind it is, where it lies, and what it is called in the report."""

    kind: str
    path: Path
    name: str


@dataclass(frozen=True)
class FoundPath:
    """A path as it was kept: records by position, a summary of barriers a split, and what is said of the whole."""

    points: list[Record]
    summary: list[Record]
    told: Record
    plan: Record


def open_sources(texts: Sequence[str]) -> list[Source]:
    """The sources that a command line names, each PATH or NAME=PATH, in their order.

    Raises DataError for what is none of the kinds that a report knows, UsageError where two have the same name or the
    same place.
    """
    given = [named(text) for text in texts]
    kinds = [kind_of(path) for _, path in given]
    paths = [_place(kind, path) for kind, (_, path) in zip(kinds, given, strict=True)]
    told = iter(
        distinct_names([_naming_part(path) for (name, _), path in zip(given, paths, strict=True) if name is None])
    )
    names = [name or next(told) for name, _ in given]
    for what, values in (("called", names), ("read from", [str(path.resolve()) for path in paths])):
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise UsageError(f"two of the things to be reported are {what} {twice}; name each once (NAME=PATH)")
    return [Source(kind, path, name) for kind, path, name in zip(kinds, paths, names, strict=True)]


def kind_of(path: Path) -> str:
    """Which kind of source lies at `path`, by its content. Raises DataError where it is none."""
    if path.is_dir():
        return _kind_of_directory(path)
    try:
        require_regular(path)
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; expected {KINDS}") from error
    if start.startswith(HDF5) or path.suffix in SUFFIXES:
        return DUMP
    if not start.strip():
        raise DataError(f"{path}: is empty; expected {KINDS}")
    if not start.lstrip().startswith(b"{"):
        raise DataError(f"{path}: is neither HDF5 nor JSON Lines; expected {KINDS}")
    if path.name == POINTS_FILE and (path.parent / PLAN_FILE).exists():
        return _kind_of_directory(path.parent)
    return PATH if b'"alpha"' in start.splitlines()[0] else RECORDS


def class_names(path: Path) -> tuple[str, ...]:
    """Names of classes 0, 1, … from a text file, one a line. Raises DataError where it cannot be read or has none."""
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no text, where names of classes were expected, one a line") from error
    if not any(names):
        raise DataError(f"{path}: holds no name; expected one a line, that of class 0 first")
    return names


def records_of(source: Source) -> list[Record]:
    """The records of a file, each number checked to be one. Raises DataError, naming the record, where one is not."""
    records = read_records(source.path)
    if not records:
        raise DataError(f"{source.path}: no record in it")
    return _checked(records, source.path)


def read_path(source: Source) -> FoundPath:
    """A path from its directory, finished or not, or from its points alone, whose barriers are then found anew.

    Raises DataError where a file in it cannot be read or is not what a path's is.
    """
    file = source.path / POINTS_FILE if source.path.is_dir() else source.path
    points = _checked(read_records(file), file)
    for record in points:
        if record.get("alpha") is None or record.get("split") is None:
            raise DataError(f"{file}: a record without alpha or split is no point of a path")
    points = sorted(({"loss": None, "accuracy": None, **record} for record in points), key=_alpha)
    whole = source.path / "path.json"
    if source.path.is_dir() and whole.exists():
        told = read_object(whole, OF_OURS)
        return FoundPath(points, _checked(_list_of_objects(told, "summary", whole), whole), told, plan_of(source))
    summary = []
    for split in dict.fromkeys(str(record["split"]) for record in points):
        alphas = {record["alpha"] for record in points if record["split"] == split}
        summary += [barriers(points, split, "")] if {0, 1} <= alphas else []
    return FoundPath(points, summary, {}, plan_of(source))


def read_plane(source: Source) -> PlaneResult:
    """A finished plane from its directory. Raises DataError where a file in it is not what a plane's is."""
    whole = source.path / "plane.json"
    told = read_object(whole, OF_OURS)
    points = _checked(read_records(source.path / POINTS_FILE), source.path / POINTS_FILE)
    found = {name: _checked(_list_of_objects(told, name, whole), whole) for name in ("marks", "summary")}
    grid = {name: _numbers(told, name, whole) for name in ("xs", "ys")}
    needed = {"points": (points, ("x", "y")), "marks": (found["marks"], ("x", "y"))}
    for name, (records, coordinates) in needed.items():
        for record in records:
            if any(number(record, one, f"{whole}: {name}") is None for one in coordinates):
                raise DataError(f"{source.path}: {name}: a record without x and y has no place in a plane")
            record["loss"] = number(record, "loss", f"{source.path}: {name}")
            record["name"] = str(record.get("name") or "")
    axes = told.get("axes")
    shown = axes if isinstance(axes, dict) else {}
    return PlaneResult(points, found["marks"], found["summary"], shown, grid["xs"], grid["ys"])


def plan_of(source: Source) -> Record:
    """What a path or a plane was asked to be; empty where that is not known. Raises DataError where it is no JSON."""
    plan = source.path / PLAN_FILE
    return read_object(plan, OF_OURS) if source.path.is_dir() and plan.exists() else {}


def _alpha(point: Record) -> float:
    return float(point["alpha"])


def named(text: str) -> tuple[str | None, Path]:
    """What NAME=PATH names, and the path; a path alone names nothing."""
    name, separator, rest = text.partition("=")
    if separator and name and not Path(text).exists():
        return name, Path(rest)
    return None, Path(text)


def _place(kind: str, path: Path) -> Path:
    if kind == RECORDS and path.is_dir():
        return _records_in(path)[0]
    inside = kind in {PATH, PLANE} and path.name == POINTS_FILE and (path.parent / PLAN_FILE).exists()
    return path.parent if inside else path


def _kind_of_directory(path: Path) -> str:
    try:
        names = {entry.name for entry in path.iterdir() if not entry.name.startswith(".")}
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if "plane.json" in names:
        return PLANE
    if "path.json" in names:
        return PATH
    if any(Path(name).suffix in SUFFIXES for name in names):
        return DUMP
    if {POINTS_FILE, PLAN_FILE} <= names:
        if "directions" in read_object(path / PLAN_FILE, OF_OURS):
            raise DataError(f"{path}: a plane that is not finished; give its command again to go on")
        return PATH
    if _records_in(path):
        return RECORDS
    raise DataError(f"{path}: nothing in this directory can be reported; expected {KINDS}")


def _records_in(path: Path) -> list[Path]:
    known = [path / name for name in RECORD_FILES if (path / name).is_file()]
    others = [file for file in sorted(path.glob("*.jsonl")) if not file.name.startswith(".")]
    return known[:1] or (others if len(others) == 1 else [])


def _naming_part(path: Path) -> Path:
    """Return the part of a path by which a person knows it: a run's directory for its file of records."""
    if path.name in RECORD_FILES:
        return path.resolve().parent
    return path.with_suffix("") if path.suffix == ".jsonl" else path


def _checked(records: Sequence[Record], path: Path) -> list[Record]:
    known = [entry.name for entry in ENTRIES] + [*REFERENCES, "step", "alpha", "epoch", "to_step"]
    checked = []
    for index, record in enumerate(records, 1):
        for name in known:
            if record.get(name) is not None:
                number(record, name, f"{path}: record {index}")
        texts = [name for name in ("checkpoint", "split") if record.get(name) is not None]
        checked.append({**record, **{name: str(record[name]) for name in texts}})
    return checked


def _list_of_objects(told: Record, name: str, path: Path) -> list[Record]:
    found = told.get(name)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise DataError(f"{path}: {name}: expected a list of JSON objects")
    return [{"split": None, **one} for one in found]


def _numbers(told: Record, name: str, path: Path) -> list[float]:
    found: Any = told.get(name)
    if not isinstance(found, list) or len(found) < 2:
        raise DataError(f"{path}: {name}: expected a list of at least two numbers")
    return [value for value in (number({name: one}, name, str(path)) for one in found) if value is not None]

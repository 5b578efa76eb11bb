"""Sources of a report: dumps, records, paths and planes, recognised by their content, and where they come from."""

from codecs import BOM_UTF8
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

from ckpt_probe.analysis import Record, read_records
from ckpt_probe.analysis.entries import REFERENCES
from ckpt_probe.analysis.records import RECORD_FILES, RECORD_SUFFIXES, number, record_files
from ckpt_probe.analysis.series import is_recorded
from ckpt_probe.checkpoints.series import has_checkpoints
from ckpt_probe.dumps import has_dumps, open_dump_series, read_provenance
from ckpt_probe.errors import DataError
from ckpt_probe.extraction.config import command_of
from ckpt_probe.files import content_hash, read_object, require_regular
from ckpt_probe.groups import Sources, group_runs, named_sources, seed_names
from ckpt_probe.moments.selection import all_metrics
from ckpt_probe.paths import PlaneResult
from ckpt_probe.paths.ledger import CODE, PLAN_FILE, POINTS_FILE, REQUEST
from ckpt_probe.paths.positions import barriers

Kind = Literal["dumps", "records", "path", "plane", "checkpoints"]
KINDS = (
    "dumps (.h5, or a directory of them), records (.jsonl, or a run's directory), checkpoints (a directory of them), "
    "the directory of a path or a plane"
)
HDF5 = b"\x89HDF\r\n\x1a\n"
PLAN_OR_SUMMARY = "the plan or summary of a path or a plane"


@dataclass(frozen=True)
class Source:
    """Source of a report: kind, path, name in the report, group and seed, and the checkpoints of a run with records."""

    kind: Kind
    path: Path
    name: str
    group: str | None = None
    seed: str | None = None
    checkpoints: Path | None = None


@dataclass(frozen=True)
class PathContents:
    """Stored path: records by position, summary of barriers per split, `path.json` (empty if unfinished), and plan."""

    points: list[Record]
    summary: list[Record]
    result: Record
    plan: Record


def open_sources(sources: Sources) -> list[Source]:
    """Open the sources of a report: paths, texts PATH, NAME=PATH or NAME=PATTERN, or a mapping from names to paths.

    A directory of sources is a group, as in `ckpt_probe.groups`.

    Args:
        sources: The sources.

    Returns:
        The sources, in order. Only runs of a group of several have a group and a seed.

    Raises:
        DataError: If a path is not a source of a known kind.
        UsageError: If two sources have the same name or the same path.
    """
    runs = group_runs(map(_without_files, named_sources(sources)), _is_source, KINDS)
    recognised = [_recognised(Path(run.path)) for run in runs]
    names = [run.name for run in runs] if runs[0].name else seed_names([recognised[0][1]])
    return [
        Source(kind, path, name, run.group if run.seed else None, run.seed, _checkpoints_beside(kind, path))
        for (kind, path), name, run in zip(recognised, names, runs, strict=True)
    ]


def _without_files(named: tuple[str | None, list[Path | str]]) -> tuple[str | None, list[Path | str]]:
    """Return a source with the directory of a path or of a run, by which it is named, in place of a file in it."""
    name, paths = named
    return name, [_recognised(Path(path))[1] if _is_source(Path(path)) else path for path in paths]


def _is_source(path: Path) -> bool:
    """Return whether a path is a source; among the files of a directory, those with a usual suffix."""
    if path.is_file():
        return is_recorded(path)
    try:
        return bool(kind_of(path))
    except DataError:
        return False


def kind_of(path: Path) -> Kind:
    """Return the kind of a source by its content; raise DataError if it is not a source of a known kind."""
    if path.is_dir():
        return _kind_of_directory(path)
    try:
        require_regular(path)
        with path.open("rb") as file:
            start = file.read(4096).removeprefix(BOM_UTF8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; expected {KINDS}") from error
    if start.startswith(HDF5) or has_dumps(path):
        return "dumps"
    if not start.strip():
        raise DataError(f"{path}: is empty; expected {KINDS}")
    suffix, first = path.suffix.lower(), start.splitlines()[0]
    if not start.lstrip().startswith(b"{") and suffix not in RECORD_SUFFIXES:
        raise DataError(f"{path}: is neither HDF5 nor JSON Lines; expected {KINDS}")
    if path.name == POINTS_FILE and (path.parent / PLAN_FILE).exists():
        return _kind_of_directory(path.parent)
    return "path" if b'"alpha"' in first or (suffix == ".csv" and b"alpha" in first.split(b",")) else "records"


def class_names(path: Path) -> tuple[str, ...]:
    """Read the names of classes 0, 1, … from a text file, one per line; raise DataError if there is no name."""
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file; expected names of classes, one per line") from error
    if not any(names):
        raise DataError(f"{path}: contains no name; expected one per line, that of class 0 first")
    return names


def records_of(source: Source) -> list[Record]:
    """Read the records of a file; raise DataError with the record if a value that must be a number is not."""
    records = read_records(source.path)
    if not records:
        raise DataError(f"{source.path}: no record in it")
    return _checked(records, source.path)


def read_path(source: Source) -> PathContents:
    """Read a path from its directory, finished or not, or from its points only; missing barriers are computed.

    Raises:
        DataError: If a file cannot be read, or is not the file of a path.
    """
    file = source.path / POINTS_FILE if source.path.is_dir() else source.path
    points = _checked(read_records(file), file)
    for record in points:
        if record.get("alpha") is None or record.get("split") is None:
            raise DataError(f"{file}: a record without alpha or split is not a point of a path")
    points = sorted(({"loss": None, "accuracy": None, **record} for record in points), key=itemgetter("alpha"))
    file = source.path / "path.json"
    if file.exists():
        result = read_object(file, PLAN_OR_SUMMARY)
        return PathContents(points, _checked(_list_of_objects(result, "summary", file), file), result, plan_of(source))
    summary = []
    for split in dict.fromkeys(str(record["split"]) for record in points):
        alphas = {record["alpha"] for record in points if record["split"] == split}
        summary += [barriers(points, split, "")] if {0, 1} <= alphas else []
    return PathContents(points, summary, {}, plan_of(source))


def read_plane(source: Source) -> PlaneResult:
    """Read a finished plane from its directory; raise DataError if a file is not the file of a plane."""
    file = source.path / "plane.json"
    result = read_object(file, PLAN_OR_SUMMARY)
    points = _checked(read_records(source.path / POINTS_FILE), source.path / POINTS_FILE)
    marks, summary = (_checked(_list_of_objects(result, name, file), file) for name in ("marks", "summary"))
    for name, record in (*(("points", each) for each in points), *(("marks", each) for each in marks)):
        if record.get("x") is None or record.get("y") is None:
            raise DataError(f"{source.path}: {name}: a record without x and y is not a point of a plane")
        record["loss"], record["name"] = record.get("loss"), str(record.get("name") or "")
    xs, ys = (_numbers(result, name, file) for name in ("xs", "ys"))
    axes = result.get("axes")
    return PlaneResult(points, marks, summary, axes if isinstance(axes, dict) else {}, xs, ys)


def plan_of(source: Source) -> Record:
    """Return the stored request of a path or a plane, empty if unknown; raise DataError if it is not JSON."""
    plan = source.path / PLAN_FILE
    return read_object(plan, PLAN_OR_SUMMARY) if plan.exists() else {}


def _recognised(path: Path) -> tuple[Kind, Path]:
    """Return the kind of a source, and its path: the file of records of a run, the directory of a file of points."""
    kind = kind_of(path)
    if kind == "records" and path.is_dir():
        return kind, record_files(path)[0]
    inside = kind in ("path", "plane") and path.name == POINTS_FILE and (path.parent / PLAN_FILE).exists()
    return kind, path.parent if inside else path


def _kind_of_directory(path: Path) -> Kind:
    contains_dumps = has_dumps(path)
    if (path / "plane.json").exists():
        return "plane"
    if (path / "path.json").exists():
        return "path"
    if contains_dumps:
        return "dumps"
    if (path / POINTS_FILE).exists() and (path / PLAN_FILE).exists():
        if "directions" in read_object(path / PLAN_FILE, PLAN_OR_SUMMARY):
            raise DataError(f"{path}: an unfinished plane; run its command again to finish it")
        return "path"
    if is_recorded(path):
        return "records"
    if _are_checkpoints(path):
        return "checkpoints"
    raise DataError(f"{path}: no source of a report in this directory; expected {KINDS}")


def _checkpoints_beside(kind: Kind, path: Path) -> Path | None:
    """Return the directory of checkpoints of a run whose records are a source."""
    directory = path.parent / "checkpoints"
    return directory if kind == "records" and directory.is_dir() and has_checkpoints(directory) else None


def _are_checkpoints(path: Path) -> bool:
    """Return whether a directory is that of checkpoints, and not one of several runs with records."""
    runs = (child / name for child in path.iterdir() for name in RECORD_FILES)
    return has_checkpoints(path) and not any(file.is_file() for file in runs)


def _checked(records: Sequence[Record], path: Path) -> list[Record]:
    known = [metric.name for metric in all_metrics()] + [*REFERENCES, "step", "alpha", "epoch", "to_step", "x", "y"]
    checked = []
    for index, record in enumerate(records, 1):
        for name in known:
            if record.get(name) is not None:
                number(record, name, f"{path}: record {index}")
        texts = [name for name in ("checkpoint", "split") if record.get(name) is not None]
        checked.append({**record, **{name: str(record[name]) for name in texts}})
    return checked


def _list_of_objects(result: Record, name: str, path: Path) -> list[Record]:
    objects = result.get(name)
    if not isinstance(objects, list) or not all(isinstance(item, dict) for item in objects):
        raise DataError(f"{path}: {name}: expected a list of JSON objects")
    return [{"split": None, **item} for item in objects]


def _numbers(result: Record, name: str, path: Path) -> list[float]:
    items: Any = result.get(name)
    if not isinstance(items, list) or len(items) < 2:
        raise DataError(f"{path}: {name}: expected a list of at least two numbers")
    return [value for value in (number({name: item}, name, str(path)) for item in items) if value is not None]


@dataclass(frozen=True)
class FileFacts:
    """File of a source: name, size in bytes, and the SHA-256 of `hashed`: the file, or the checkpoint of a dump."""

    name: str
    size: int
    sha256: str
    hashed: str


@dataclass(frozen=True)
class Origin:
    """Provenance of a source: kind, path, facts by name, files, and commands that repeat it ("" if unknown)."""

    name: str
    kind: str
    path: str
    facts: dict[str, str]
    files: tuple[FileFacts, ...]
    command: str


def origin_of(source: Source) -> Origin:
    """Return the provenance of a source; raise DataError if one of its files cannot be read."""
    if source.kind == "dumps":
        return _of_dumps(source)
    plan = plan_of(source)
    names = (PLAN_FILE, POINTS_FILE, f"{source.kind}.json")
    files = [source.path / name for name in names] if source.path.is_dir() else [source.path]
    facts = {
        name: _text(value)
        for name, value in plan.items()
        if value not in (None, [], {}) and name not in {CODE, REQUEST}
    }
    present = tuple(_file(file) for file in files if file.exists())
    verb = "interpolate" if source.kind == "path" else "plane"
    command = command_of(verb, plan[REQUEST], source.path) if REQUEST in plan else ""
    return Origin(source.name, source.kind, str(source.path), facts, present, command)


def without_shared(origins: Sequence[Origin]) -> tuple[tuple[Origin, ...], dict[str, str]]:
    """Return the origins with the facts in which they differ, and the facts that all of several have in common."""
    if len(origins) < 2:
        return tuple(origins), {}
    first = origins[0].facts
    shared = {name: text for name, text in first.items() if all(each.facts.get(name) == text for each in origins)}
    differing = [{name: text for name, text in each.facts.items() if name not in shared} for each in origins]
    return tuple(replace(each, facts=facts) for each, facts in zip(origins, differing, strict=True)), shared


def _of_dumps(source: Source) -> Origin:
    members = open_dump_series(source.path)
    known = [(member.path, read_provenance(member.path)) for member in members]
    ours = [provenance for _, provenance in known if provenance is not None]
    facts: dict[str, str] = {"dumps": str(len(members))}
    for name in ("model", "model_arguments", "data", "data_arguments", "classifier", "forward_dtype", "feature_dtype",
                 "store", "limit", "device", "versions"):  # fmt: skip
        facts |= _common(name, (getattr(provenance, name) for provenance in ours))
    files = tuple(
        _file(path)
        if provenance is None
        else FileFacts(path.name, path.stat().st_size, provenance.checkpoint_sha256, "its checkpoint")
        for path, provenance in known
    )
    out = source.path if source.path.is_dir() else source.path.parent
    calls = [command_of("extract", origin.request, out) for origin in ours if origin.request is not None]
    return Origin(source.name, source.kind, str(source.path), facts, files, "\n".join(dict.fromkeys(calls)))


def _common(name: str, values: Iterable[Any]) -> dict[str, str]:
    texts = list(dict.fromkeys(_text(value) for value in values if value not in (None, {}, ())))
    if not texts:
        return {}
    return {name: texts[0] + (f" and {len(texts) - 1} others" if len(texts) > 1 else "")}


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_text(part) for part in value)
    return str(value)


def _file(path: Path) -> FileFacts:
    return FileFacts(path.name, path.stat().st_size, content_hash(path), "the file")

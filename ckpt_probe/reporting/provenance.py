"""Provenance of the sources of a report: files and their hashes, settings, and commands that repeat them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ckpt_probe.dumps import open_dump_series, read_provenance
from ckpt_probe.extraction.request import command_of
from ckpt_probe.files import content_hash
from ckpt_probe.paths.ledger import CODE, PLAN_FILE, POINTS_FILE, REQUEST
from ckpt_probe.reporting.sources import DUMP, PATH, PLANE, WEIGHTS, Source, plan_of


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
    if source.kind == DUMP:
        return _of_dumps(source)
    if source.kind == WEIGHTS:
        return Origin(source.name, source.kind, str(source.path), {}, (), "")
    plan = plan_of(source) if source.kind in {PATH, PLANE} else {}
    names = (PLAN_FILE, POINTS_FILE, f"{source.kind}.json")
    files = [source.path / name for name in names] if source.path.is_dir() else [source.path]
    facts = {
        name: _text(value)
        for name, value in plan.items()
        if value not in (None, [], {}) and name not in {CODE, REQUEST}
    }
    present = tuple(_file(file) for file in files if file.exists())
    verb = "interpolate" if source.kind == PATH else "plane"
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

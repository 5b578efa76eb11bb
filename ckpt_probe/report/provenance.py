"""Where the numbers of a report come from: files and their hashes, what made them, and commands that would again."""

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt_probe.checkpoints.metadata import library_versions
from ckpt_probe.dumps import Provenance, open_dump_series, read_provenance
from ckpt_probe.files import content_hash
from ckpt_probe.paths.ledger import PLAN_FILE, POINTS_FILE
from ckpt_probe.report.sources import DUMP, PATH, PLANE, Source, plan_of

EXTRACT = {"forward_dtype": ("--dtype", "float32"), "feature_dtype": ("--feature-dtype", "float32")}
NO_OPTION = frozenset({"a", "b", "c", "splits", "dumps", "directions"})
"""Parts of a plan that are no options of its command, or are spelled otherwise there."""


@dataclass(frozen=True)
class FileFacts:
    """One file: its name, size, the SHA-256 of `hashed`: itself, or the checkpoint that a dump was made from."""

    name: str
    size: int
    sha256: str
    hashed: str


@dataclass(frozen=True)
class Origin:
    """One source: what it is, facts by name, its files, and a command that would make it again ("" where unknown)."""

    name: str
    kind: str
    place: str
    facts: dict[str, str]
    files: tuple[FileFacts, ...]
    command: str


def origin_of(source: Source) -> Origin:
    """Where a source comes from. Raises DataError where a file of it cannot be read."""
    if source.kind == DUMP:
        return _of_dumps(source)
    plan = plan_of(source) if source.kind in {PATH, PLANE} else {}
    names = (PLAN_FILE, POINTS_FILE, f"{source.kind}.json")
    files = [source.path / name for name in names] if source.path.is_dir() else [source.path]
    facts = {name: _told(value) for name, value in plan.items() if value not in (None, [], {})}
    present = tuple(_file(file) for file in files if file.exists())
    return Origin(source.name, source.kind, str(source.path), facts, present, _walk_command(source, plan))


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that made a report."""
    return library_versions()


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
    command = _extract_command(source, ours[0]) if ours else ""
    return Origin(source.name, source.kind, str(source.path), facts, files, command)


def _common(name: str, values: Iterable[Any]) -> dict[str, str]:
    told = list(dict.fromkeys(_told(value) for value in values if value not in (None, {}, ())))
    return {name: told[0] + (f" and {len(told) - 1} others" if len(told) > 1 else "")} if told else {}


def _extract_command(source: Source, provenance: Provenance) -> str:
    # Where the checkpoints lay is not kept in a dump, only what they were called.
    words = ["ckpt-probe", "extract", "CHECKPOINTS", "-o", str(source.path)]
    for name in ("model", "data"):
        words += [f"--{name}", getattr(provenance, name)]
        words += _arguments(name, getattr(provenance, f"{name}_arguments"))
    for name, (option, default) in EXTRACT.items():
        words += [option, getattr(provenance, name)] if getattr(provenance, name) != default else []
    words += ["--limit", str(provenance.limit)] if provenance.limit else []
    words += ["--classifier", "none"] if provenance.classifier is None else []
    words += ["--pooling", provenance.pooling] if provenance.pooling not in (None, "features") else []
    if provenance.max_rows is not None:
        words += ["--max-rows", str(provenance.max_rows), "--rows-seed", str(provenance.rows_seed)]
    words += ["--store", provenance.store] if provenance.store != "features" else []
    words += [] if provenance.logits else ["--no-logits"]
    return shlex.join(words)


def _walk_command(source: Source, plan: Mapping[str, Any]) -> str:
    if not plan:
        return ""
    verb = "interpolate" if source.kind == PATH else "plane"
    ends = [name.upper() for name in "abc" if plan.get(name)]
    words = ["ckpt-probe", verb, *ends, "-o", str(source.path)]
    words += ["--directions", "random"] if plan.get("directions") == "random" else []
    words += ["--keep-dumps"] if plan.get("dumps") else []
    for name, value in plan.items():
        if name in NO_OPTION or value in (None, "none", [], {}):
            continue
        if name.endswith("_arguments"):
            words += _arguments(name.removesuffix("_arguments"), value)
        else:
            # Of a file only its hash is kept.
            told = name.upper() if name in {"midpoint", "align_spec"} else _option(name, value)
            words += [f"--{name.replace('_', '-')}", told]
    for split in plan.get("splits") or []:
        words += ["--split", str(split)]
    return shlex.join(words)


def _arguments(name: str, arguments: Any) -> list[str]:
    return [f"--{name}-arguments", json.dumps(arguments)] if arguments else []


def _option(name: str, value: Any) -> str:
    if isinstance(value, list):
        return {"range": ":", "grid": "x"}.get(name, ",").join(str(one) for one in value)
    return str(value)


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_told(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_told(one) for one in value)
    return str(value)


def _file(path: Path) -> FileFacts:
    return FileFacts(path.name, path.stat().st_size, content_hash(path), "the file")

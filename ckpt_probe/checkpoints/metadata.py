"""What a checkpoint says about itself: how to rebuild its model and data, and where in the run it stands."""

import json
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

from ckpt_probe.addresses import without_credentials
from ckpt_probe.errors import DataError

FORMAT_VERSION = 1
PREFIX = "ckpt_probe."


@dataclass(frozen=True)
class CheckpointMetadata:
    """Our part of a safetensors file's metadata; a foreign file has none of it, and every field is empty."""

    model: str | None = None
    model_arguments: dict[str, Any] = field(default_factory=dict)
    data: str | None = None
    data_arguments: dict[str, Any] = field(default_factory=dict)
    step: int | None = None
    epoch: float | None = None
    seed: int | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    classifier: str | None = None
    sparsity: float | None = None
    """Share of entries that are exactly zero, over all tensors that pruning may touch."""
    pruned: list[str] = field(default_factory=list)
    """Tensors whose zeros are a mask: training that starts here leaves them zero."""

    def to_strings(self) -> dict[str, str]:
        """As safetensors keeps it: strings only, each of ours a JSON value under a name that starts with our own."""
        ours = {f"{PREFIX}{f.name}": getattr(self, f.name) for f in fields(self)}
        stated = {
            name: json.dumps(without_credentials(value)) for name, value in ours.items() if value not in (None, {}, [])
        }
        return {"format": "pt", f"{PREFIX}format": str(FORMAT_VERSION), **stated}

    @staticmethod
    def from_strings(strings: dict[str, str]) -> "CheckpointMetadata":
        """The reverse of `to_strings`. Raises DataError for a newer format, or a value that is no JSON."""
        if f"{PREFIX}format" not in strings:
            return CheckpointMetadata()
        found = strings[f"{PREFIX}format"]
        if not found.isdigit() or int(found) > FORMAT_VERSION:
            raise DataError(f"checkpoint metadata has format {found}, newer than {FORMAT_VERSION}: upgrade ckpt-probe")
        known = {f.name for f in fields(CheckpointMetadata)}
        values = {}
        for name, text in strings.items():
            short = name.removeprefix(PREFIX)
            if name.startswith(PREFIX) and short in known:
                values[short] = _parsed(name, text)
        return CheckpointMetadata(**values)


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide numbers."""
    import platform  # here, where it is needed: it costs as much as the rest of this package

    names = ("ckpt-probe", "torch", "numpy", "safetensors", "h5py")
    return {"python": platform.python_version(), **{name: _version(name) for name in names}}


@cache
def _version(name: str) -> str:
    # Each reading parses a file of hundreds of lines.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _parsed(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"checkpoint metadata {name} is not valid JSON ({error})") from error

"""Our entries in the header of a safetensors file: names and arguments of model and data, and position in the run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

from ckpt_probe.addresses import without_credentials
from ckpt_probe.errors import DataError

FORMAT_VERSION = 1
PREFIX = "ckpt_probe."
LARGEST = 2**63
"""Size of a number that a dump cannot store."""


@dataclass(frozen=True)
class CheckpointMetadata:
    """Our entries in the metadata of a safetensors file; all fields are empty for files of other programs."""

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
    """Fraction of entries that are exactly zero, over all tensors that pruning may change."""
    pruned: list[str] = field(default_factory=list)
    """Tensors whose zeros are a mask: training that starts here leaves them zero."""

    def to_strings(self) -> dict[str, str]:
        """Return the metadata as strings for safetensors: each field as JSON, under its name with our prefix."""
        ours = {f"{PREFIX}{f.name}": getattr(self, f.name) for f in fields(self)}
        stated = {
            name: json.dumps(without_credentials(value)) for name, value in ours.items() if value not in (None, {}, [])
        }
        return {"format": "pt", f"{PREFIX}format": str(FORMAT_VERSION), **stated}

    @staticmethod
    def from_strings(strings: dict[str, str]) -> "CheckpointMetadata":
        """Create metadata from the strings of `to_strings`.

        Raises:
            DataError: If the format is newer, or a value is not JSON.
        """
        if f"{PREFIX}format" not in strings:
            return CheckpointMetadata()
        version = strings[f"{PREFIX}format"]
        if version not in map(str, range(FORMAT_VERSION + 1)):
            raise DataError(
                f"checkpoint metadata has format {version[:20]}, newer than {FORMAT_VERSION}: upgrade ckpt-probe"
            )
        texts = {f.name: strings.get(f"{PREFIX}{f.name}", "null") for f in fields(CheckpointMetadata)}
        values = {name: _parsed(name, text) for name, text in texts.items()}
        return CheckpointMetadata(**{name: value for name, value in values.items() if value is not None})


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that affect numbers."""
    import platform  # its import takes as long as that of this package

    names = ("ckpt-probe", "torch", "numpy", "safetensors", "h5py")
    return {"python": platform.python_version(), **{name: _version(name) for name in names}}


def _parsed(name: str, text: str) -> Any:
    """Return the value of a field from its JSON, None for null."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"checkpoint metadata {PREFIX}{name} is not valid JSON ({error})") from error
    kinds = KINDS.get(name, str)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST
    if value is not None and not (isinstance(value, kinds) and (is_number or kinds in (str, list, dict))):
        raise DataError(f"checkpoint metadata {PREFIX}{name} is {text[:40]}, not a value that training writes there")
    return value


KINDS: Mapping[str, Any] = {
    "step": int,
    "seed": int,
    "epoch": (int, float),
    "sparsity": (int, float),
    "pruned": list,
    **dict.fromkeys(("model_arguments", "data_arguments", "metrics", "config", "versions"), dict),
}
"""Types of the fields of `CheckpointMetadata`; the others are texts."""


@cache
def _version(name: str) -> str:
    # Each call of `version` parses a file of hundreds of lines.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"

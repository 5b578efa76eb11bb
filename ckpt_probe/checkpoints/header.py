"""Our entries in the header of a safetensors file: metadata of the run, and hashes of its tensors.

Metadata are the names and arguments of model and data, and the position in the run. With the hashes a flipped bit is an
error and not another number.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt_probe.addresses import without_credentials
from ckpt_probe.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT_VERSION = 1
PREFIX = "ckpt_probe."
HASHES = f"{PREFIX}sha256"
"""Entry of the metadata of a safetensors header: a JSON object of names → hexadecimal hashes."""
METADATA_KEY = "__metadata__"
"""Key of that object for the hash of our other entries; safetensors does not allow a tensor of this name."""

PIECE = 2**18
"""Number of bytes with a hash of their own, so that several threads can hash one tensor, in any order."""

Kind = tuple[str, tuple[int, ...]]
"""Dtype, by safetensors' name, and shape."""

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


def piece_digests(data: Any) -> list[bytes]:
    """Return the SHA-256 of each `PIECE` bytes of a buffer; the last piece may be shorter."""
    view = memoryview(data).cast("B")
    return [hashlib.sha256(view[start : start + PIECE]).digest() for start in range(0, len(view), PIECE)]


def tensor_hash(kind: Kind, digests: Iterable[bytes]) -> str:
    """Return the SHA-256 of dtype, shape and the digests of all pieces of a tensor, in their order, in hexadecimal."""
    dtype, shape = kind
    combined = hashlib.sha256(f"{dtype} {list(shape)}\n".encode())
    for digest in digests:
        combined.update(digest)
    return combined.hexdigest()


def hash_of(kind: Kind, tensor: "Tensor") -> str:
    """Return the `tensor_hash` of a tensor on the CPU."""
    return tensor_hash(kind, piece_digests(tensor_bytes(tensor)))


def tensor_bytes(tensor: "Tensor") -> Any:
    """Return the bytes of a tensor in C order, without a copy if it is contiguous and on the CPU."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def with_hashes(metadata: Mapping[str, str], hashes: Mapping[str, str]) -> dict[str, str]:
    """Return metadata with the hashes of tensors by name and a hash of our other entries."""
    others = {name: text for name, text in metadata.items() if name != HASHES}
    return {**others, HASHES: json.dumps({METADATA_KEY: _metadata_hash(others), **hashes}, separators=(",", ":"))}


def without_hashes(metadata: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """Return metadata of the length that `with_hashes` will have, for tensors whose hashes are not known yet."""
    return with_hashes(metadata, dict.fromkeys(names, "0" * 64))


def stated_hashes(path: Path, metadata: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """Return the hashes of tensors in the metadata of a file; empty if it has none.

    Args:
        path: File, for messages.
        metadata: Texts of its header.
        names: Names of its tensors.

    Raises:
        DataError: If the hashes are those of other tensors, or our other entries have changed.
    """
    changed = f"{path}: damaged, or changed by another program that kept its hashes"
    if HASHES not in metadata:
        # The key of the hashes itself may be damaged.
        if any(METADATA_KEY in text for text in metadata.values()):
            raise DataError(f"{changed}: its hashes are not in the entry {HASHES}; copy the file again")
        return {}
    try:
        hashes = json.loads(metadata[HASHES])
        intact = isinstance(hashes, dict) and hashes.pop(METADATA_KEY) == _metadata_hash(metadata)
    except (ValueError, KeyError, RecursionError) as error:
        raise DataError(f"{changed}: {HASHES} is not an object of hashes") from error
    if not intact:
        raise DataError(f"{changed}: its metadata differs from the metadata that was written; copy the file again")
    unmatched = sorted(hashes.keys() ^ set(names))
    if unmatched:
        raise DataError(f"{changed}: tensor {unmatched[0]!r} has no hash, or a hash and no tensor; copy the file again")
    return hashes


def require_hash(path: Path, name: str, computed: str, stated: str | None) -> None:
    """Raise DataError if the hash of a tensor differs from the stated one, unless no hash is stated."""
    if stated is not None and computed != stated:
        raise DataError(f"{path}: tensor {name!r} is damaged: its bytes are not those written; copy the file again")


def _metadata_hash(metadata: Mapping[str, str]) -> str:
    ours = sorted((name, text) for name, text in metadata.items() if name.startswith(PREFIX) and name != HASHES)
    return hashlib.sha256(json.dumps(ours).encode()).hexdigest()


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

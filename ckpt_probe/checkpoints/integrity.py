"""Hashes of tensors that stand in a checkpoint's own metadata, so that a flipped bit is an error and never a number."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt_probe.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

HASHES = "ckpt_probe.sha256"
"""The entry of a safetensors header's metadata: a JSON object of names → hexadecimal hashes."""
OF_METADATA = "__metadata__"
"""In that object the hash of our other entries; no tensor of safetensors may be called so."""
OURS = "ckpt_probe."

PIECE = 2**18
"""Bytes that are hashed by themselves, so that several threads can hash one tensor, in any order."""

Kind = tuple[str, tuple[int, ...]]
"""safetensors' dtype name, shape."""


def piece_digests(data: Any) -> list[bytes]:
    """SHA-256 of every `PIECE` bytes of a buffer, the last one perhaps shorter."""
    view = memoryview(data).cast("B")
    return [hashlib.sha256(view[start : start + PIECE]).digest() for start in range(0, len(view), PIECE)]


def tensor_hash(kind: Kind, digests: Iterable[bytes]) -> str:
    """SHA-256 over a tensor's dtype, its shape and the SHA-256 of each piece of its bytes, in their order."""
    dtype, shape = kind
    told = hashlib.sha256(f"{dtype} {list(shape)}\n".encode())
    for digest in digests:
        told.update(digest)
    return told.hexdigest()


def hash_of(kind: Kind, tensor: "Tensor") -> str:
    """`tensor_hash` of a tensor on the CPU, whose bytes it reads once."""
    return tensor_hash(kind, piece_digests(tensor_bytes(tensor)))


def tensor_bytes(tensor: "Tensor") -> Any:
    """A tensor's bytes in C order, without a copy where they lie so on the CPU."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def with_hashes(metadata: Mapping[str, str], hashes: Mapping[str, str]) -> dict[str, str]:
    """Metadata with the hashes of tensors by name, and that of our entries in it."""
    others = {name: text for name, text in metadata.items() if name != HASHES}
    return {**others, HASHES: json.dumps({OF_METADATA: _metadata_hash(others), **hashes}, separators=(",", ":"))}


def without_hashes(metadata: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """As `with_hashes`, for tensors yet to be hashed: as long as it will be then."""
    return with_hashes(metadata, dict.fromkeys(names, "0" * 64))


def stated_hashes(path: Path, metadata: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """The hashes that a file's metadata state of its tensors, none where it carries none.

    Raises DataError where they are not of these very tensors, or our entries beside them are not those written.
    """
    changed = f"{path}: damaged, or changed by another program that kept its hashes"
    if HASHES not in metadata:
        # Damage may be in the very name by which they are found.
        if any(OF_METADATA in text for text in metadata.values()):
            raise DataError(f"{changed}: its hashes are there, but not called {HASHES}; copy the file again")
        return {}
    try:
        found = json.loads(metadata[HASHES])
        whole = isinstance(found, dict) and found.pop(OF_METADATA) == _metadata_hash(metadata)
    except (ValueError, KeyError, RecursionError) as error:
        raise DataError(f"{changed}: {HASHES} is no object of hashes") from error
    if not whole:
        raise DataError(f"{changed}: its metadata is not what was written; copy the file again")
    odd = sorted(found.keys() ^ set(names))
    if odd:
        raise DataError(f"{changed}: tensor {odd[0]!r} has no hash, or a hash and no tensor; copy the file again")
    return found


def require_hash(path: Path, name: str, found: str, stated: str | None) -> None:
    """Raise DataError where a tensor's hash is not the one stated; None: nothing is stated, and nothing checked."""
    if stated is not None and found != stated:
        raise DataError(f"{path}: tensor {name!r} is damaged: its bytes are not those written; copy the file again")


def _metadata_hash(metadata: Mapping[str, str]) -> str:
    ours = sorted((name, text) for name, text in metadata.items() if name.startswith(OURS) and name != HASHES)
    return hashlib.sha256(json.dumps(ours).encode()).hexdigest()

"""Safetensors files: one file, or shards with their index. Their headers are read without torch and safetensors.

Our files state a hash of each tensor, so that a flipped bit is an error and not another number.
"""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO

from ckpt_probe.addresses import Address
from ckpt_probe.budget import Budget
from ckpt_probe.checkpoints.checkpoint import Checkpoint, Fill, Shard
from ckpt_probe.checkpoints.metadata import PREFIX
from ckpt_probe.checkpoints.parts import ModelFiles
from ckpt_probe.checkpoints.tensors import BITS, TORCH_NAMES
from ckpt_probe.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor


MOST_AXES = 64
"""Largest number of axes, as in torch."""
HASHES = f"{PREFIX}sha256"
"""Entry of the metadata of a safetensors header: a JSON object of names → hexadecimal hashes."""
METADATA_KEY = "__metadata__"
"""Key of that object for the hash of our other entries; safetensors does not allow a tensor of this name."""

PIECE = 2**18
"""Number of bytes with a hash of their own, so that several threads can hash one tensor, in any order."""

Kind = tuple[str, tuple[int, ...]]
"""Dtype, by safetensors' name, and shape."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file.

    Attributes:
        dtype: Dtype, by safetensors' name.
        shape: Shape.
        start: Position of its first byte in the file.
        stop: Position after its last byte.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file.

    Attributes:
        file: The file.
        tensors: Tensors by name, in the order of their bytes.
        metadata: Texts of the header, without the hashes.
        hashes: Hashes of tensors by name, if the file states them.
    """

    file: Path
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]
    hashes: Mapping[str, str]


def read_header(path: Path) -> Header:
    """Read the header of a safetensors file, without torch and safetensors.

    Raises:
        DataError: If the file is not safetensors, or the header does not fit the size of the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise DataError(f"{path}: not a safetensors file, or a truncated one (a header of {length} bytes)")
        text = file.read(length)
    try:
        header = Budget(path, size).parse_json(text, object_pairs_hook=_without_repeats)
        metadata = header.pop("__metadata__", {})
        tensors = {name: _stored_tensor(entry, 8 + length) for name, entry in header.items()}
        if not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("metadata must be strings")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: not a safetensors file: its header cannot be read ({error})") from error
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)))
    end = 8 + length
    for name, tensor in ordered.items():
        if tensor.dtype not in BITS:
            raise DataError(f"{path}: tensor {name!r} has the unsupported dtype {tensor.dtype}; convert it to BF16")
        if tensor.start != end:
            raise DataError(f"{path}: tensor {name!r} starts at byte {tensor.start}, expected {end}; file damaged")
        end = tensor.stop
    if end != size:
        difference = "truncated: shorter" if size < end else "longer"
        raise DataError(f"{path}: {difference} than its header says ({size:,} bytes instead of {end:,}); copy it again")
    hashes = stated_hashes(path, metadata, ordered)
    return Header(path, ordered, {name: text for name, text in metadata.items() if name != HASHES}, hashes)


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


def open_safetensors(files: ModelFiles, state_key: str | None, base: Checkpoint | None, stack: ExitStack) -> Checkpoint:
    """Open a safetensors file or shards.

    Raises:
        DataError: If a shard is missing or has other tensors than the index states; also as in `read_header`.
    """
    headers = [read_header(file) for file in files.shards]
    index = None if files.homes is None else files.file
    several = len(headers) > 1 or index is not None
    if several:
        files.require_listed({header.file.name: header.tensors for header in headers})
    homes = {name: header for header in headers for name in header.tensors}
    fill = _filler(homes, stack)
    checkpoint = Checkpoint(
        file=files.file,
        format=f"safetensors, {len(headers)} shards" if several else "safetensors",
        files=files.shards if index is None else (index, *files.shards),
        layout={name: (header.tensors[name].dtype, header.tensors[name].shape) for name, header in homes.items()},
        reader=_reader(homes, fill, stack),
        fill=fill,
        raw_metadata={name: text for header in reversed(headers) for name, text in header.metadata.items()},
        stated_hashes={name: text for header in headers for name, text in header.hashes.items()},
        # Copies of shards without an index are written as one file.
        shards=()
        if index is None and several
        else tuple(Shard(h.file.name, tuple(h.tensors), h.metadata) for h in headers),
        index=index,
    )
    return checkpoint if state_key is None else checkpoint.below(state_key)


def _reader(homes: Mapping[str, Header], fill: Fill, stack: ExitStack) -> "Callable[[str], Tensor]":
    """Return a function that reads a tensor, memory-mapped if its file is local; `stack` closes the files."""
    opened: dict[Path, Any] = {}

    def read(name: str) -> "Tensor":
        import torch
        from safetensors import SafetensorError, safe_open

        file, stored = homes[name].file, homes[name].tensors[name]
        try:
            if isinstance(file, Address):
                data = torch.empty(stored.stop - stored.start, dtype=torch.uint8)
                fill(name, 0, data.numpy().data)
                tensor = data.view(getattr(torch, TORCH_NAMES[stored.dtype])).reshape(stored.shape)
            else:
                if file not in opened:
                    opened[file] = stack.enter_context(safe_open(str(file), framework="pt"))
                tensor = opened[file].get_tensor(name)
        except (SafetensorError, OSError, ValueError) as error:
            raise DataError(f"{file}: tensor {name!r} cannot be read ({error})") from error
        if stated := homes[name].hashes.get(name):
            require_hash(file, name, hash_of((stored.dtype, stored.shape), tensor), stated)
        return tensor

    return read


def _filler(homes: Mapping[str, Header], stack: ExitStack) -> Fill:
    """Return a function that copies bytes of a tensor into a buffer; `stack` closes the files that it opens."""
    opened: dict[Path, BinaryIO] = {}
    turn = Lock()

    def fill(name: str, offset: int, into: memoryview) -> None:
        file, stored = homes[name].file, homes[name].tensors[name]
        with turn:
            if file not in opened:
                opened[file] = stack.enter_context(file.open("rb", buffering=0))
            if isinstance(file, Address):
                opened[file].seek(stored.start + offset)
                into[:] = opened[file].read(len(into))
                return
        position = stored.start + offset
        while into:
            count = os.preadv(opened[file].fileno(), [into], position)
            if not count:
                raise DataError(f"{file}: became shorter while it was read, at tensor {name!r}")
            position, into = position + count, into[count:]

    return fill


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"tensor {name!r} is present twice")
    return entries


def _stored_tensor(entry: Mapping[str, Any], data: int) -> StoredTensor:
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    start, stop = entry["data_offsets"]
    if len(shape) > MOST_AXES:
        raise ValueError(f"a shape of {len(shape):,} axes, expected at most {MOST_AXES}")
    if not all(isinstance(number, int) and 0 <= number < 2**63 for number in (*shape, start, stop)):
        raise ValueError("shape or offsets are not all integers from 0 to 2^63 - 1")
    if dtype in BITS and stop - start != math.prod(shape) * BITS[dtype] // 8:
        raise ValueError(f"{stop - start} bytes do not fit {dtype} of shape {shape}")
    return StoredTensor(dtype, shape, data + start, data + stop)

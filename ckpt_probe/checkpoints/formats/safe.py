"""Safetensors files: one file, or shards with their index. Their headers are read without torch and safetensors."""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO

from ckpt_probe.addresses import Address
from ckpt_probe.budget import Budget
from ckpt_probe.checkpoints.contents import Contents, Shard, with_prefix
from ckpt_probe.checkpoints.folders import require_listed, shards_of
from ckpt_probe.checkpoints.header import HASHES, hash_of, require_hash, stated_hashes
from ckpt_probe.checkpoints.tensors import BITS
from ckpt_probe.errors import DataError
from ckpt_probe.files import require_regular

if TYPE_CHECKING:
    from torch import Tensor


MOST_AXES = 64
"""Largest number of axes, as in torch."""


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
    require_regular(path)
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
        if tensor.start != end:
            raise DataError(f"{path}: tensor {name!r} starts at byte {tensor.start}, expected {end}; file damaged")
        end = tensor.stop
    if end != size:
        difference = "truncated: shorter" if size < end else "longer"
        raise DataError(f"{path}: {difference} than its header says ({size:,} bytes instead of {end:,}); copy it again")
    hashes = stated_hashes(path, metadata, ordered)
    return Header(path, ordered, {name: text for name, text in metadata.items() if name != HASHES}, hashes)


@contextmanager
def open_file(path: Path, state_key: str | None = None, base: Contents | None = None) -> Iterator[Contents]:
    """Open a safetensors file.

    Raises:
        DataError: As in `read_header`.
    """
    with _contents(path, state_key, [read_header(path)], None) as contents:
        yield contents


@contextmanager
def open_shards(path: Path, state_key: str | None = None, base: Contents | None = None) -> Iterator[Contents]:
    """Open the shards of an index, or those without an index of which this is one.

    Raises:
        DataError: If a shard is missing or has other tensors than the index states; also as in `read_header`.
    """
    files, wanted = shards_of(path)
    headers = [read_header(file) for file in files]
    require_listed(path, wanted, {header.file.name: header.tensors for header in headers})
    with _contents(path, state_key, headers, None if wanted is None else path) as contents:
        yield contents


@contextmanager
def _contents(path: Path, state_key: str | None, headers: list[Header], index: Path | None) -> Iterator[Contents]:
    homes = {name: header for header in headers for name in header.tensors}
    files = tuple(header.file for header in headers)
    with ExitStack() as stack:
        contents = Contents(
            path=path,
            format="safetensors" if len(files) == 1 and index is None else f"safetensors, {len(files)} shards",
            files=files if index is None else (index, *files),
            layout={name: (header.tensors[name].dtype, header.tensors[name].shape) for name, header in homes.items()},
            read=_reader(homes, stack),
            fill=_filler(homes, stack),
            metadata={name: text for header in reversed(headers) for name, text in header.metadata.items()},
            hashes={name: text for header in headers for name, text in header.hashes.items()},
            # Copies of shards without an index are written as one file.
            shards=()
            if index is None and len(files) > 1
            else tuple(Shard(h.file.name, tuple(h.tensors), h.metadata) for h in headers),
            index=index,
        )
        yield contents if state_key is None else with_prefix(contents, state_key)


def _reader(homes: Mapping[str, Header], stack: ExitStack) -> "Callable[[str], Tensor]":
    """Return a function that reads a tensor; `stack` closes the files that it opens."""
    opened: dict[Path, Any] = {}

    def read(name: str) -> "Tensor":
        from safetensors import SafetensorError, safe_open

        file, stored = homes[name].file, homes[name].tensors[name]
        try:
            if isinstance(file, Address):
                if file not in opened:
                    opened[file] = stack.enter_context(file.open("rb", buffering=0))
                opened[file].seek(stored.start)
                tensor = _from_bytes(stored, opened[file].read(stored.stop - stored.start))
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


def _filler(homes: Mapping[str, Header], stack: ExitStack) -> Callable[[str, int, memoryview], None]:
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
        _read_at(opened[file], file, name, stored.start + offset, into)

    return fill


def _from_bytes(stored: StoredTensor, data: bytes) -> "Tensor":
    """Return the tensor of these bytes, through a safetensors file in memory that has no other."""
    from safetensors.torch import load

    entry = {"dtype": stored.dtype, "shape": list(stored.shape), "data_offsets": [0, len(data)]}
    header = json.dumps({"tensor": entry}).encode()
    return load(len(header).to_bytes(8, "little") + header + data)["tensor"]


def _read_at(opened: BinaryIO, file: Path, name: str, position: int, into: memoryview) -> None:
    while into:
        count = os.preadv(opened.fileno(), [into], position)
        if not count:
            raise DataError(f"{file}: became shorter while it was read, at tensor {name!r}")
        position, into = position + count, into[count:]


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for name, value in pairs:
        if name in entries:
            raise ValueError(f"tensor {name!r} is present twice")
        entries[name] = value
    return entries


def _stored_tensor(entry: Mapping[str, Any], data: int) -> StoredTensor:
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    start, stop = entry["data_offsets"]
    if dtype not in BITS:
        raise ValueError(f"unknown dtype {dtype}")
    if len(shape) > MOST_AXES:
        raise ValueError(f"a shape of {len(shape):,} axes, expected at most {MOST_AXES}")
    if not all(isinstance(number, int) and 0 <= number < 2**63 for number in (*shape, start, stop)):
        raise ValueError("shape or offsets are not all integers from 0 to 2^63 - 1")
    if stop - start != math.prod(shape) * BITS[dtype] // 8:
        raise ValueError(f"{stop - start} bytes do not fit {dtype} of shape {shape}")
    return StoredTensor(dtype, shape, data + start, data + stop)

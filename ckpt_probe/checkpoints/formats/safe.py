"""safetensors: one file, or shards with their index. Headers are read by us, without torch; tensors by safetensors."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO

from ckpt_probe.addresses import Address
from ckpt_probe.checkpoints.contents import Asked, Contents, Shard, below
from ckpt_probe.checkpoints.folders import present_twice, shards_of
from ckpt_probe.checkpoints.formats.headers import Header, Place, read_header
from ckpt_probe.checkpoints.integrity import hash_of, require_hash
from ckpt_probe.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def open_file(path: Path, asked: Asked) -> Iterator[Contents]:
    """Open one safetensors file. Raises DataError where a claim of its header does not hold."""
    with _opened(path, asked, [read_header(path)], None) as contents:
        yield contents


@contextmanager
def open_shards(path: Path, asked: Asked) -> Iterator[Contents]:
    """Open the shards that an index names, or of which this is one that no index names.

    Raises DataError where a shard is absent, holds another tensor than the index says, or one that it does not list.
    """
    files, wanted = shards_of(path)
    headers = [read_header(file) for file in files]
    _require_listed(path, wanted, headers)
    with _opened(path, asked, headers, None if wanted is None else path) as contents:
        yield contents


@contextmanager
def _opened(path: Path, asked: Asked, headers: list[Header], index: Path | None) -> Iterator[Contents]:
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
            # Without an index, copies of them are written as a single file.
            shards=()
            if index is None and len(files) > 1
            else tuple(Shard(h.file.name, tuple(h.tensors), h.metadata) for h in headers),
            index=index,
        )
        yield contents if asked.state_key is None else below(contents, asked.state_key)


def _require_listed(index: Path, wanted: Mapping[str, str] | None, headers: list[Header]) -> None:
    homes: dict[str, str] = {}
    for header in headers:
        for name in header.tensors:
            if name in homes:
                raise present_twice(index, name, homes[name], header.file.name)
            homes[name] = header.file.name
    if wanted is None:
        return
    for name, file in wanted.items():
        if homes.get(name) != file:
            raise DataError(f"{index}: says that tensor {name!r} is in {file}, but it is not")
    unlisted = next((name for name in homes if name not in wanted), None)
    if unlisted is not None:
        raise DataError(f"{index}: does not list tensor {unlisted!r} of {homes[unlisted]}")


def _reader(homes: Mapping[str, Header], stack: ExitStack) -> "Callable[[str], Tensor]":
    """Return a function that reads a tensor; `stack` closes the files that it opens."""
    opened: dict[Path, Any] = {}

    def read(name: str) -> "Tensor":
        from safetensors import SafetensorError, safe_open

        file, place = homes[name].file, homes[name].tensors[name]
        try:
            if isinstance(file, Address):
                if file not in opened:
                    opened[file] = stack.enter_context(file.open("rb", buffering=0))
                opened[file].seek(place.start)
                tensor = _from_bytes(place, opened[file].read(place.stop - place.start))
            else:
                if file not in opened:
                    opened[file] = stack.enter_context(safe_open(str(file), framework="pt"))
                tensor = opened[file].get_tensor(name)
        except (SafetensorError, OSError, ValueError) as error:
            raise DataError(f"{file}: tensor {name!r} cannot be read ({error})") from error
        if stated := homes[name].hashes.get(name):
            require_hash(file, name, hash_of((place.dtype, place.shape), tensor), stated)
        return tensor

    return read


def _filler(homes: Mapping[str, Header], stack: ExitStack) -> Callable[[str, int, memoryview], None]:
    """Return a function that copies bytes of a tensor into a buffer; `stack` closes the files that it opens."""
    opened: dict[Path, BinaryIO] = {}
    turn = Lock()

    def fill(name: str, offset: int, into: memoryview) -> None:
        file, place = homes[name].file, homes[name].tensors[name]
        with turn:
            if file not in opened:
                opened[file] = stack.enter_context(file.open("rb", buffering=0))
            if isinstance(file, Address):
                opened[file].seek(place.start + offset)
                into[:] = opened[file].read(len(into))
                return
        _read_at(opened[file], file, name, place, offset, into)

    return fill


def _from_bytes(place: Place, data: bytes) -> "Tensor":
    """Return the tensor of these bytes, through a safetensors file in memory that has no other."""
    import json

    from safetensors.torch import load

    entry = {"dtype": place.dtype, "shape": list(place.shape), "data_offsets": [0, len(data)]}
    header = json.dumps({"tensor": entry}).encode()
    return load(len(header).to_bytes(8, "little") + header + data)["tensor"]


def _read_at(opened: BinaryIO, file: Path, name: str, place: Place, offset: int, into: memoryview) -> None:
    at = place.start + offset
    while into:
        got = os.preadv(opened.fileno(), [into], at)
        if not got:
            raise DataError(f"{file}: became shorter while it was read, at tensor {name!r}")
        at, into = at + got, into[got:]

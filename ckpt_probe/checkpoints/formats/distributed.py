"""Checkpoints of torch.distributed.checkpoint: a directory of shards, and `.metadata` with the position of each part.

`.metadata` is a pickle. It is read by an unpickler that has only the few classes which torch writes there, in place of
torch's reader, which would unpickle anything. Each part is a file of torch.save within a shard.
"""

import io
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt_probe.addresses import local_path
from ckpt_probe.budget import Budget
from ckpt_probe.checkpoints.checkpoint import Checkpoint
from ckpt_probe.checkpoints.formats.nesting import EXTRA_STATE, choose
from ckpt_probe.checkpoints.formats.pickled import filler, load_checked
from ckpt_probe.checkpoints.formats.scanning import scan
from ckpt_probe.checkpoints.formats.stand_ins import STAND_INS, plain
from ckpt_probe.checkpoints.parts import ModelFiles
from ckpt_probe.checkpoints.tensors import dtype_name
from ckpt_probe.errors import CkptProbeError, DataError, last_line
from ckpt_probe.files import require_regular

if TYPE_CHECKING:
    from torch import Tensor

NO_METADATA = "not the metadata of a torch.distributed checkpoint, or damaged"
SMALL = 2**16
"""Largest size in bytes of an entry besides the tensors, such as the step, that is read with the metadata."""
CLASSES = {
    "torch.distributed.checkpoint.metadata": frozenset(
        {
            "Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "BytesStorageMetadata",
            "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
        }
    ),
    "torch.distributed.checkpoint.filesystem": frozenset({"_StorageInfo"}),
    "torch.serialization": frozenset({"_get_layout"}),
    "torch": frozenset({"Size"}),
    "collections": frozenset({"OrderedDict"}),
}  # fmt: skip
"""Classes and functions that `.metadata` may name, besides torch's dtypes; its paths are read as texts."""


@contextmanager
def open_distributed(files: ModelFiles, state_key: str | None, base: Checkpoint | None) -> Iterator[Checkpoint]:
    """Open a directory by its `.metadata`.

    Raises:
        DataError: If the metadata name other classes than torch writes, a file that is missing or outside the
            directory, or more bytes than a file has.
        UsageError: As in `nesting.choose`.
    """
    path = files.file
    metadata = _read_metadata(path)
    try:
        pieces = _pieces(path, metadata)
        tree = _tree(metadata, pieces)
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        # Fields of the objects are missing or of other types.
        raise DataError(f"{path}: {NO_METADATA} ({error})") from error
    try:
        choice = choose(tree, _numbers, state_key)
    except CkptProbeError as error:
        raise type(error)(f"{path.parent}: {error}") from error
    leaves: Mapping[str, _Leaf] = choice.taken.tensors

    def read(name: str) -> "Tensor":
        return _read(leaves[name])

    def extra() -> dict[str, Any]:
        try:
            return _extra_states(metadata, pieces, choice.taken.key)
        except (AttributeError, TypeError, ValueError) as error:
            raise DataError(f"{path}: {NO_METADATA} ({error})") from error

    yield Checkpoint(
        file=path,
        format="torch distributed",
        files=(path, *sorted({piece.file for parts in pieces.values() for piece in parts})),
        layout={name: (dtype_name(leaf.dtype), leaf.shape) for name, leaf in leaves.items()},
        reader=read,
        fill=filler(read),
        extras=plain(_extras(metadata, pieces)),
        extra_state=extra,
        state_key=choice.taken.key or None,
        others=tuple(map(str, choice.others)),
    )


@dataclass(frozen=True)
class _Piece:
    """A stored part of a tensor, or another entry.

    Attributes:
        file: File.
        offset: Position of its first byte.
        length: Number of bytes.
        start: Indices of the first entry of the part in its tensor; () for another entry.
    """

    file: Path
    offset: int
    length: int
    start: tuple[int, ...]

    def opened(self) -> io.BytesIO:
        """Return its bytes as a file, so that no claim in them can read more."""
        require_regular(self.file)
        with self.file.open("rb") as file:
            file.seek(self.offset)
            return io.BytesIO(file.read(self.length))


@dataclass(frozen=True)
class _Leaf:
    """A stored tensor.

    Attributes:
        name: Name in the metadata.
        dtype: Its torch dtype.
        shape: Its shape.
        pieces: Its parts.
        chunks: Shape of each part by the indices of its first entry.
    """

    name: str
    dtype: Any
    shape: tuple[int, ...]
    pieces: tuple[_Piece, ...]
    chunks: Mapping[tuple[int, ...], tuple[int, ...]]


def _numbers(leaf: Any) -> int | None:
    return prod(leaf.shape) if isinstance(leaf, _Leaf) else None


class _Restricted(pickle.Unpickler):
    """An unpickler with only the classes that torch writes into `.metadata`."""

    def find_class(self, module: str, name: str) -> Any:
        import importlib

        import torch

        if name in CLASSES.get(module, ()):
            return getattr(importlib.import_module(module), name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module.startswith("pathlib") and f"{module}.{name}" in STAND_INS:
            return STAND_INS[f"{module}.{name}"]
        raise pickle.UnpicklingError(f"names {module}.{name}, which torch does not write there")


def _read_metadata(path: Path) -> Any:
    # The metadata have a few opcodes for each part, and each part has a file of torch.save in a shard.
    size = sum(file.stat().st_size for file in path.parent.iterdir() if file.is_file())
    budget = Budget(path, size)
    budget.spend(path.stat().st_size)
    data = path.read_bytes()
    try:
        scan(io.BytesIO(data), budget)
        metadata: Any = _Restricted(io.BytesIO(data)).load()
        tensors = {name: entry for name, entry in metadata.state_dict_metadata.items() if hasattr(entry, "chunks")}
        if not all(isinstance(name, str) for name in tensors) or not isinstance(metadata.storage_data, dict):
            raise ValueError("names must be strings")
    except (MemoryError, CkptProbeError):
        raise
    except Exception as error:
        # A damaged file may lead to any exception.
        raise DataError(f"{path}: {NO_METADATA} ({last_line(error)})") from error
    return metadata


def _pieces(path: Path, metadata: Any) -> dict[Any, list[_Piece]]:
    """Return the parts of each entry by its name, each checked against the size of its file."""
    pieces: dict[Any, list[_Piece]] = {}
    sizes: dict[str, int] = {}
    for index, info in metadata.storage_data.items():
        name, offset, length = info.relative_path, info.offset, info.length
        file = path.parent / str(name)
        if not isinstance(name, str) or Path(name).name != name or file.resolve().parent != path.parent.resolve():
            raise DataError(f"{path}: names the file {name!r}, which is outside its directory")
        if name not in sizes:
            if not file.is_file():
                raise DataError(f"{path}: names the file {name}, which is missing")
            sizes[name] = file.stat().st_size
        valid = isinstance(offset, int) and isinstance(length, int) and offset >= 0 and length >= 0
        if not valid or offset + length > sizes[name]:
            raise DataError(f"{file}: truncated: {index.fqn!r} ends beyond its {sizes[name]:,} bytes")
        if getattr(info, "transform_descriptors", None):
            raise DataError(
                f"{file}: {index.fqn!r} is stored through an extension (compression), which is not supported"
            )
        pieces.setdefault(index.fqn, []).append(_Piece(file, offset, length, tuple(map(int, index.offset or ()))))
    return pieces


def _tree(metadata: Any, pieces: Mapping[Any, list[_Piece]]) -> dict[str, Any]:
    """Return the tensors in the nested mappings that were saved, by the planner's data; without them, at one level."""
    tree: dict[str, Any] = {}
    for name, entry in metadata.state_dict_metadata.items():
        if not hasattr(entry, "chunks"):
            continue
        *above, last = _steps(metadata, name)
        mapping = tree
        for step in above:
            inner = mapping.setdefault(step, {})
            mapping = inner if isinstance(inner, dict) else {}
        mapping[last] = _leaf(name, entry, pieces.get(name, []))
    return tree


def _steps(metadata: Any, name: Any) -> list[str]:
    """Return the keys from the top of the nested mappings to an entry, by the planner's data; else its name alone."""
    planned = metadata.planner_data if isinstance(metadata.planner_data, dict) else {}
    steps = planned.get(name)
    return [str(step) for step in steps] if isinstance(steps, tuple) and steps else [str(name)]


def _leaf(name: str, entry: Any, pieces: list[_Piece]) -> _Leaf:
    shape = tuple(int(axis) for axis in entry.size)
    chunks = {tuple(map(int, chunk.offsets)): tuple(map(int, chunk.sizes)) for chunk in entry.chunks}
    numbers = sum(map(prod, chunks.values()))
    stored = sum(piece.length for piece in pieces)
    if any(axis < 0 for axis in shape):
        raise ValueError(f"tensor {name!r} of shape {shape}")
    if numbers != prod(shape) or sorted(piece.start for piece in pieces) != sorted(chunks):
        raise ValueError(f"tensor {name!r} of shape {shape} has {numbers:,} numbers in {len(pieces)} parts")
    if numbers * entry.properties.dtype.itemsize > stored:
        raise ValueError(f"tensor {name!r} of shape {shape} claims more than its {stored:,} bytes")
    for start, sizes in chunks.items():
        if not all(0 <= low <= low + size <= axis for low, size, axis in zip(start, sizes, shape, strict=True)):
            raise ValueError(f"tensor {name!r} of shape {shape} has a part {sizes} at {start}, which is not within it")
    return _Leaf(name, entry.properties.dtype, shape, tuple(pieces), chunks)


def _read(leaf: _Leaf) -> "Tensor":
    import torch

    tensor = torch.zeros(leaf.shape, dtype=leaf.dtype)
    for stored in leaf.pieces:
        # A remote directory is downloaded as a whole.
        piece = replace(stored, file=local_path(stored.file.parent) / stored.file.name)
        part = load_checked(piece.opened(), piece.length, piece.file)
        sizes = leaf.chunks[piece.start]
        target = tensor[tuple(slice(start, start + size) for start, size in zip(piece.start, sizes, strict=True))]
        if not isinstance(part, torch.Tensor) or part.shape != target.shape:
            raise DataError(f"{piece.file}: a part of tensor {leaf.name!r} does not have the shape {sizes}")
        # Call the method of the class, as a file may set attributes of its tensors.
        target.copy_(torch.Tensor.detach(part))
    return tensor


def _extra_states(metadata: Any, pieces: Mapping[Any, list[_Piece]], state_key: str) -> dict[str, Any]:
    """Return modules' extra state beside the tensors at a key; torch stores each entry of its mappings by itself."""
    extra: dict[str, Any] = {}
    for name, entry in metadata.state_dict_metadata.items():
        steps = _steps(metadata, name)
        level = next((i for i, step in enumerate(steps) if step.rpartition(".")[2] == EXTRA_STATE), None)
        stored = pieces.get(name, [])
        is_tensor = hasattr(entry, "chunks")
        if (
            level is None
            or ".".join(steps[:level]) != state_key
            or not stored
            or (is_tensor and steps[level + 1 :] == [])
        ):
            continue
        mapping = extra
        for step in steps[level:-1]:
            mapping = mapping.setdefault(step, {})
        if is_tensor:
            mapping[steps[-1]] = _read(_leaf(name, entry, stored))
        else:
            mapping[steps[-1]] = load_checked(stored[0].opened(), stored[0].length, stored[0].file)
    return extra


def _extras(metadata: Any, pieces: Mapping[Any, list[_Piece]]) -> dict[str, Any]:
    """Return small entries at the top level besides the tensors, such as the step."""
    extras = {}
    for name, entry in metadata.state_dict_metadata.items():
        stored = pieces.get(name, [])
        top = isinstance(name, str) and len(_steps(metadata, name)) == 1
        if top and not hasattr(entry, "chunks") and len(stored) == 1 and stored[0].length <= SMALL:
            try:
                extras[name] = load_checked(stored[0].opened(), stored[0].length, stored[0].file)
            except DataError as error:
                extras[name] = f"not read: {error}"
    return extras

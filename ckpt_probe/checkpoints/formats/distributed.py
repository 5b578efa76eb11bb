"""Checkpoints of torch.distributed.checkpoint: a directory of shards, and `.metadata` with the position of each part.

`.metadata` is a pickle. It is read by an unpickler that has only the few classes which torch writes there, in place of
torch's reader, which would unpickle anything. Each part is a file of torch.save within a shard.
"""

import io
import pickle
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
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
from ckpt_probe.errors import CkptProbeError, DataError, error_context, last_line

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


def open_distributed(files: ModelFiles, state_key: str | None, base: Checkpoint | None, stack: ExitStack) -> Checkpoint:
    """Open a directory by its `.metadata`.

    Raises:
        DataError: If the metadata name other classes than torch writes, a file that is missing or outside the
            directory, or more bytes than a file has.
        UsageError: As in `nesting.choose`.
    """
    path = files.file
    metadata = _read_metadata(path)
    try:
        entries = _entries(path, metadata)
        tree = _tree(entries)
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        # Fields of the objects are missing or of other types.
        raise DataError(f"{path}: {NO_METADATA} ({error})") from error
    with error_context(f"{path.parent}: "):
        choice = choose(tree, _numbers, state_key)
    tensors: Mapping[str, _Entry] = choice.taken.tensors

    def read(name: str) -> "Tensor":
        return _read(path.parent, tensors[name])

    return Checkpoint(
        file=path,
        format="torch distributed",
        files=(path, *sorted({piece.file for entry in entries for piece in entry.pieces})),
        layout={name: (dtype_name(entry.dtype), entry.shape) for name, entry in tensors.items()},
        reader=read,
        fill=filler(read),
        extras=plain(_extras(path.parent, entries)),
        extra_state=lambda: _extra_states(path.parent, entries, choice.taken.key),
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

    def load(self) -> Any:
        """Return the stored value; its bytes are read first, so that no claim in them can read more."""
        with self.file.open("rb") as file:
            file.seek(self.offset)
            content = io.BytesIO(file.read(self.length))
        return load_checked(content, self.length, self.file)


@dataclass(frozen=True)
class _Entry:
    """A stored tensor, or another value.

    Attributes:
        name: Name in the metadata.
        steps: Keys to it from the top of the nested mappings that were saved.
        pieces: Its parts.
        dtype: Torch dtype of a tensor, None for another value.
        shape: Shape of a tensor.
        chunks: Shape of each part of a tensor by the indices of its first entry.
    """

    name: str
    steps: tuple[str, ...]
    pieces: tuple[_Piece, ...]
    dtype: Any = None
    shape: tuple[int, ...] = ()
    chunks: Mapping[tuple[int, ...], tuple[int, ...]] = field(default_factory=dict)


def _numbers(entry: Any) -> int | None:
    return prod(entry.shape) if isinstance(entry, _Entry) else None


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
    claimed: Counter[str] = Counter()
    for index, info in metadata.storage_data.items():
        name, offset, length = info.relative_path, info.offset, info.length
        if not isinstance(name, str):
            raise TypeError("the name of a file must be a text")
        file = path.parent / name
        if Path(name).name != name or file.resolve().parent != path.parent.resolve():
            raise DataError(f"{path}: names the file {name!r}, which is outside its directory")
        if name not in sizes:
            if not file.is_file():
                raise DataError(f"{path}: names the file {name}, which is missing")
            sizes[name] = file.stat().st_size
        valid = isinstance(offset, int) and isinstance(length, int) and offset >= 0 and length >= 0
        if not valid or offset + length > sizes[name]:
            raise DataError(f"{file}: truncated: {index.fqn!r} ends beyond its {sizes[name]:,} bytes")
        claimed[name] += length
        if claimed[name] > sizes[name]:
            raise DataError(f"{file}: its parts claim more than its {sizes[name]:,} bytes; damaged")
        if getattr(info, "transform_descriptors", None):
            raise DataError(
                f"{file}: {index.fqn!r} is stored through an extension (compression), which is not supported"
            )
        pieces.setdefault(index.fqn, []).append(_Piece(file, offset, length, tuple(map(int, index.offset or ()))))
    return pieces


def _entries(path: Path, metadata: Any) -> list[_Entry]:
    """Return all entries; the planner's data have the nested mappings, without them every entry is at the top."""
    pieces = _pieces(path, metadata)
    planned = metadata.planner_data if isinstance(metadata.planner_data, dict) else {}
    entries = []
    for name, stored in metadata.state_dict_metadata.items():
        steps = planned.get(name) or (str(name),)
        # The spelling of nested tuples might take forever.
        if not isinstance(steps, tuple) or not all(isinstance(step, str | int) for step in steps):
            raise TypeError(f"the keys to {name!r} are no texts")
        keys = tuple(map(str, steps))
        entry = _Entry(str(name), keys, tuple(pieces.get(name, ())))
        entries.append(_as_tensor(entry, stored) if hasattr(stored, "chunks") else entry)
    return entries


def _as_tensor(entry: _Entry, stored: Any) -> _Entry:
    import torch

    shape, dtype = tuple(map(int, stored.size)), stored.properties.dtype
    chunks = {tuple(map(int, chunk.offsets)): tuple(map(int, chunk.sizes)) for chunk in stored.chunks}
    numbers, length = sum(map(prod, chunks.values())), sum(piece.length for piece in entry.pieces)
    described = f"tensor {entry.name!r} of shape {shape}"
    if not isinstance(dtype, torch.dtype) or not all(0 <= axis < 2**63 for axis in shape):
        raise ValueError(described)
    if numbers != prod(shape) or sorted(piece.start for piece in entry.pieces) != sorted(chunks):
        raise ValueError(f"{described} has {numbers:,} numbers in {len(entry.pieces)} parts")
    if numbers * dtype.itemsize > length:
        raise ValueError(f"{described} claims more than its {length:,} bytes")
    for start, sizes in chunks.items():
        if not all(0 <= low <= low + size <= axis for low, size, axis in zip(start, sizes, shape, strict=True)):
            raise ValueError(f"{described} has a part {sizes} at {start}, which is not within it")
    return replace(entry, dtype=dtype, shape=shape, chunks=chunks)


def _tree(entries: list[_Entry]) -> dict[str, Any]:
    """Return the tensors in the nested mappings that were saved."""
    tree: dict[str, Any] = {}
    for entry in entries:
        if entry.dtype is None:
            continue
        mapping = tree
        for step in entry.steps[:-1]:
            inner = mapping.setdefault(step, {})
            mapping = inner if isinstance(inner, dict) else {}
        mapping[entry.steps[-1]] = entry
    return tree


def _read(folder: Path, entry: _Entry) -> Any:
    """Return a tensor, or another value with all tensors in it."""
    import torch

    if entry.dtype is None:
        return entry.pieces[0].load()
    try:
        tensor = torch.zeros(entry.shape, dtype=entry.dtype)
    except RuntimeError as error:
        # There is not enough memory, or no zero of this dtype.
        raise DataError(f"{folder}: tensor {entry.name!r} cannot be read ({last_line(error)})") from error
    for stored in entry.pieces:
        # A remote directory is downloaded as a whole.
        piece = replace(stored, file=local_path(folder) / stored.file.name)
        part, sizes = piece.load(), entry.chunks[piece.start]
        target = tensor[tuple(slice(start, start + size) for start, size in zip(piece.start, sizes, strict=True))]
        if not isinstance(part, torch.Tensor) or (part.shape, part.dtype) != (target.shape, target.dtype):
            raise DataError(f"{piece.file}: a part of tensor {entry.name!r} is not {entry.dtype} of shape {sizes}")
        # Call the method of the class, as a file may set attributes of its tensors.
        target.copy_(torch.Tensor.detach(part))
    return tensor


def _extra_states(folder: Path, entries: list[_Entry], state_key: str) -> dict[str, Any]:
    """Return modules' extra state beside the tensors at a key; torch stores each entry of its mappings by itself."""
    extra: dict[str, Any] = {}
    for entry in entries:
        steps = entry.steps
        level = next((i for i, step in enumerate(steps) if step.rpartition(".")[2] == EXTRA_STATE), None)
        if level is None or ".".join(steps[:level]) != state_key or not entry.pieces:
            continue
        # A state that is a tensor is among the tensors.
        if entry.dtype is None or level < len(steps) - 1:
            mapping = extra
            for step in steps[level:-1]:
                inner = mapping.setdefault(step, {})
                mapping = inner if isinstance(inner, dict) else {}
            mapping[steps[-1]] = _read(folder, entry)
    return extra


def _extras(folder: Path, entries: list[_Entry]) -> dict[str, Any]:
    """Return small entries at the top level besides the tensors, such as the step."""
    extras = {}
    for entry in entries:
        small = [piece.length <= SMALL for piece in entry.pieces] == [True]
        if small and len(entry.steps) == 1 and entry.dtype is None:
            try:
                extras[entry.name] = _read(folder, entry)
            except DataError as error:
                extras[entry.name] = f"not read: {error}"
    return extras

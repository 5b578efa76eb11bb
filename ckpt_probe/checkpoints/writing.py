"""Write a safetensors file one tensor at a time, under a temporary name until it is complete."""

import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ckpt_probe.checkpoints.formats.safe import piece_digests, tensor_bytes, tensor_hash, with_hashes, without_hashes
from ckpt_probe.checkpoints.metadata import CheckpointMetadata
from ckpt_probe.checkpoints.tensors import BITS, Layout, dtype_name, layout_of
from ckpt_probe.errors import DataError, UsageError, error_context
from ckpt_probe.files import replacing

if TYPE_CHECKING:
    from torch import Tensor


class CheckpointWriter:
    """A writer of a safetensors file, which gets its name when all tensors are written, with their hashes.

        with CheckpointWriter(path, layout, metadata) as writer:
            for name in layout:
                writer.write(name, tensor)

    Args:
        path: File.
        layout: Dtype and shape of each tensor by name, in the order in which they are written.
        metadata: Texts of the header.
        overwrite: Whether to replace an existing file.

    Raises:
        UsageError: If the file exists and `overwrite` is false.
        DataError: If the file cannot be written, a tensor is not the next one of the layout, or one is missing.
    """

    def __init__(
        self, path: Path | str, layout: Layout, metadata: Mapping[str, str] | None = None, *, overwrite: bool = False
    ) -> None:
        self.path = Path(path)
        self._waiting = list(layout)
        self._layout = layout
        self._metadata = dict(metadata or {})
        self._hashes: dict[str, str] = {}
        self._overwrite = overwrite
        self._stack = ExitStack()
        self._file: BinaryIO | None = None

    def __enter__(self) -> "CheckpointWriter":
        temporary = self._stack.enter_context(replacing(self.path, overwrite=self._overwrite))
        try:
            self._file = self._stack.enter_context(temporary.open("wb"))
            with error_context(f"{self.path}: "):
                self._file.write(header(self._layout, without_hashes(self._metadata, self._layout)))
        except BaseException as error:
            self._stack.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def write(self, name: str, tensor: "Tensor") -> None:
        """Write the next tensor of the layout."""
        expected = self._waiting[0] if self._waiting else None
        if name != expected or self._file is None:
            raise DataError(f"{self.path}: tensor {name!r} was written, but {expected!r} comes next in the layout")
        dtype, shape = self._layout[name]
        actual = dtype_name(tensor.dtype), tuple(tensor.shape)
        if actual != (dtype, shape):
            raise DataError(f"{self.path}: tensor {name!r} is {actual[0]} {actual[1]}, the layout says {dtype} {shape}")
        data = tensor_bytes(tensor)
        self._file.write(data)
        self._hashes[name] = tensor_hash((dtype, shape), piece_digests(data))
        self._waiting.pop(0)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        with self._stack:
            if error is not None:
                raise error
            if self._waiting:
                waiting = f"{len(self._waiting)} tensors were not written, first {self._waiting[0]!r}"
                raise DataError(f"{self.path}: {waiting}")
            if self._file is not None:
                # It is as long as the header at the start of the file, which was written without the hashes.
                self._file.seek(0)
                self._file.write(header(self._layout, with_hashes(self._metadata, self._hashes)))


def save_checkpoint(
    path: Path | str,
    state_dict: "Mapping[str, Tensor]",
    metadata: CheckpointMetadata | Mapping[str, str] | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write a state dict as one safetensors file.

    Args:
        path: File.
        state_dict: Tensors by name.
        metadata: Metadata of the checkpoint, or texts of the header.
        overwrite: Whether to replace an existing file.

    Raises:
        UsageError: If the file exists and `overwrite` is false, or `state_dict` does not map names to tensors.
        DataError: If the file cannot be written, or safetensors cannot store a dtype.
    """
    if not isinstance(state_dict, Mapping):
        kind = type(state_dict).__name__
        raise UsageError(f"`state_dict`: expected tensors by name, such as model.state_dict(), found {kind}")
    strings = metadata.to_strings() if isinstance(metadata, CheckpointMetadata) else dict(metadata or {})
    for name, tensor in state_dict.items():
        if not hasattr(tensor, "dtype"):
            raise UsageError(f"{path}: `state_dict`: {name!r} is not a tensor but of type {type(tensor).__name__}")
    with CheckpointWriter(path, layout_of(state_dict), strings, overwrite=overwrite) as writer:
        for name, tensor in state_dict.items():
            writer.write(name, tensor)


def header(layout: Layout, metadata: Mapping[str, str]) -> bytes:
    """Return the bytes of a safetensors file before those of the tensors, which follow in the order of the layout."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, (dtype, shape) in layout.items():
        if dtype not in BITS:
            raise DataError(f"tensor {name!r} has dtype {dtype}, which safetensors cannot store")
        end = offset + math.prod(shape) * BITS[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    # Spaces after the JSON let the tensors start at a multiple of eight, as the format requires.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text

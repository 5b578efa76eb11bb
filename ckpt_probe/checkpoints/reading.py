"""Opening a file of tensors lazily: by name, memory-mapped, one tensor at a time. Nothing is ever unpickled."""

import difflib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from ckpt_probe.checkpoints.metadata import CheckpointMetadata
from ckpt_probe.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

State = Mapping[str, "Tensor"]
"""A state dict that is read, never changed."""

PICKLED = frozenset({".pt", ".pth", ".bin", ".ckpt", ".pkl"})


class Checkpoint:
    """An open checkpoint: names, shapes and dtypes from its header, tensors read when asked for."""

    def __init__(self, path: Path, opened: Any) -> None:
        self.path = path
        self.names: list[str] = sorted(opened.keys())
        self.raw_metadata: dict[str, str] = dict(opened.metadata() or {})
        self._opened = opened

    @cached_property
    def metadata(self) -> CheckpointMetadata:
        """Our metadata; empty fields for a foreign file. Raises DataError where it is of a newer format or broken."""
        try:
            return CheckpointMetadata.from_strings(self.raw_metadata)
        except DataError as error:
            raise DataError(f"{self.path}: {error}") from error

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """safetensors' name of one tensor's dtype ("F32", "BF16", "I64", …), without reading it."""
        return self._slice(name).get_dtype()

    def read(self, name: str) -> "Tensor":
        """One tensor, on the CPU. Raises DataError for a name that the file does not have."""
        self._slice(name)
        return self._opened.get_tensor(name)

    def state_dict(self) -> "dict[str, Tensor]":
        """All tensors by name."""
        return {name: self.read(name) for name in self.names}

    def parameters(self) -> int:
        """How many numbers all tensors hold together."""
        return sum(math.prod(self.shape(name)) for name in self.names)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __len__(self) -> int:
        return len(self.names)

    def _slice(self, name: str) -> Any:
        if name not in self.names:
            near = difflib.get_close_matches(name, self.names, n=3)
            hint = f"; nearest names: {', '.join(near)}" if near else ""
            raise DataError(f"{self.path}: no tensor {name!r}{hint}")
        return self._opened.get_slice(name)


@contextmanager
def open_checkpoint(path: Path | str) -> Iterator[Checkpoint]:
    """Open a safetensors file for reading, memory-mapped, for the time of the `with`.

    Raises DataError where the file is missing, is a directory, a pickle, or no whole safetensors file: its header's
    claims are checked against its size before any tensor is touched.
    """
    path = Path(path)
    require_readable(path)
    try:
        opened = safe_open(str(path), framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path}: {_explained(error)}") from error
    with opened as file:
        yield Checkpoint(path, file)


def require_readable(path: Path) -> None:
    """Raise DataError where there is no file at `path`, or one that would have to be unpickled."""
    if path.is_dir():
        raise DataError(f"{path}: a directory; expected one checkpoint file")
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if path.suffix in PICKLED:
        how = "if you trust the file, load it and save it with safetensors.torch.save_file"
        raise DataError(f"{path}: pickled files are not opened, because they can run code; {how}")


def _explained(error: Exception) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    if "incomplete" in text.lower() or "MetadataIncompleteBuffer" in text or "InvalidOffset" in text:
        return f"truncated: shorter than its header says; copy or write it again ({text})"
    return f"not a safetensors file, or a truncated one ({text})"

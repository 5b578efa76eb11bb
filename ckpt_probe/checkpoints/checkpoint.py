"""An open checkpoint of any format: its tensors by name, its metadata, and the information that a trainer states."""

import difflib
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt_probe.checkpoints.folders import CONFIG
from ckpt_probe.checkpoints.metadata import HYPERPARAMETERS, CheckpointMetadata, StatedMetadata, read_metadata
from ckpt_probe.checkpoints.tensors import Layout
from ckpt_probe.errors import DataError, UsageError, listed
from ckpt_probe.files import content_hash

if TYPE_CHECKING:
    from torch import Tensor

State = Mapping[str, "Tensor"]
"""A state dict that is not changed."""

Fill = Callable[[str, int, memoryview], None]
"""Function that copies bytes of a tensor in C order, from an offset, into a whole buffer."""


@dataclass(frozen=True)
class Shard:
    """One of the safetensors files that the tensors are stored in.

    Attributes:
        name: Name of the file.
        tensors: Names of its tensors, in the order of their bytes.
        metadata: Texts of its header.
    """

    name: str
    tensors: tuple[str, ...]
    metadata: Mapping[str, str]


@dataclass(eq=False, repr=False)
class Checkpoint:
    """An open checkpoint: names, shapes and dtypes of its tensors, which are read one at a time.

    Each format creates one; `path` is set by `open_checkpoint`.

    Attributes:
        file: File that was opened: of several, the index or the metadata.
        format: Description of the format.
        files: All files of the checkpoint, with those of an adapter's base.
        layout: Dtype and shape of each tensor by name, in the order of the file.
        reader: Function that returns a tensor on the CPU, checked against `stated_hashes`; callers use `read`.
        fill: Function that copies bytes of a tensor; several threads may call it at once. The bytes are not checked
            against a hash. Safetensors files are read without torch.
        raw_metadata: Texts of a safetensors header; empty for other formats.
        stated_hashes: Hashes of tensors by name, as far as the file states them.
        extras: Objects that were pickled with the tensors, as plain values.
        extra_state: Function that returns the values of modules' `get_extra_state` that are no tensors, by name.
        state_key: Key of the tensors in the pickled object, joined by dots; None if they are not nested.
        others: Other mappings of tensors in the file, which are not read, with their sizes.
        dropped: Entries among the tensors that are not tensors, and are not read.
        shards: Safetensors files with the tensors, if copies should be divided in the same way.
        index: Index of safetensors shards, None without one.
        path: File or directory that was opened.
    """

    file: Path
    format: str
    files: tuple[Path, ...]
    layout: Layout
    reader: "Callable[[str], Tensor]"
    fill: Fill
    raw_metadata: dict[str, str] = field(default_factory=dict)
    stated_hashes: Mapping[str, str] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)
    extra_state: Callable[[], Mapping[str, Any]] = dict
    state_key: str | None = None
    others: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    shards: tuple[Shard, ...] = ()
    index: Path | None = None
    path: Path = Path()

    @cached_property
    def names(self) -> list[str]:
        """Names of the tensors, sorted."""
        return sorted(self.layout)

    @cached_property
    def metadata(self) -> CheckpointMetadata:
        """Our metadata; for files of other programs the step, epoch and metrics of the trainer.

        Raises:
            DataError: If the metadata are of a newer format or damaged.
        """
        return self._stated.metadata

    @property
    def step_source(self) -> str | None:
        """Source of the step: "metadata", or a key or file of the trainer; None if no step is stated."""
        return self._stated.step_source

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """Entries of the trainer besides the tensors, as plain values: hyperparameters, its state, its name."""
        return self._stated.facts

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Arguments of the constructor of a Lightning module, without those that were shortened."""
        values = self.facts.get(HYPERPARAMETERS)
        return {
            name: value
            for name, value in (values if isinstance(values, dict) else {}).items()
            if "…" not in f"{name} {value}"
        }

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor by name."""
        return {name: shape for name, (_, shape) in self.layout.items()}

    @cached_property
    def config_directory(self) -> Path | None:
        """Directory of a `config.json` beside its files, or beside those of an adapter's base; None without one."""
        directories = (file.parent for file in (self.file, *self.files))
        return next((directory for directory in directories if (directory / CONFIG).is_file()), None)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._entry(name)[1]

    def dtype(self, name: str) -> str:
        """Return safetensors' name of the dtype of a tensor ("F32", "BF16", "I64", …)."""
        return self._entry(name)[0]

    def read(self, name: str) -> "Tensor":
        """Return a tensor on the CPU.

        Raises:
            DataError: If there is no tensor of this name, or its bytes do not have the stated hash.
        """
        self._entry(name)
        return self.reader(name)

    def state_dict(self) -> "dict[str, Tensor]":
        """Return all tensors by name."""
        return {name: self.reader(name) for name in self.names}

    def renamed(self, names: Mapping[str, str]) -> "Checkpoint":
        """Return this checkpoint with other names for its tensors: new name → present name; others are left out."""
        return replace(
            self,
            layout={new: self.layout[old] for new, old in names.items()},
            reader=lambda name: self.reader(names[name]),
            fill=lambda name, offset, into: self.fill(names[name], offset, into),
            stated_hashes={new: self.stated_hashes[old] for new, old in names.items() if old in self.stated_hashes},
        )

    def below(self, prefix: str) -> "Checkpoint":
        """Return only the tensors whose names start with a prefix and a dot, without it: one of two networks in a file.

        Raises:
            UsageError: If no name starts with the prefix.
        """
        start = f"{prefix}."
        names = {name.removeprefix(start): name for name in self.layout if name.startswith(start)}
        if not names:
            prefixes = list(dict.fromkeys(name.partition(".")[0] for name in self.layout))
            raise UsageError(
                f"{self.file}: `state_key={prefix!r}`: no tensor name starts with it; names start with "
                f"{listed(prefixes)}"
            )

        def extra_state() -> dict[str, Any]:
            return {name.removeprefix(start): v for name, v in self.extra_state().items() if name.startswith(start)}

        # Copies of the shards would contain the other tensors too.
        return replace(self.renamed(names), extra_state=extra_state, state_key=prefix, shards=(), index=None)

    def is_hashed(self, name: str) -> bool:
        """Return whether the file states a hash of a tensor, which `read` compares."""
        return name in self.stated_hashes

    def parameters(self) -> int:
        """Return the number of entries of all tensors."""
        return sum(math.prod(shape) for _, shape in self.layout.values())

    @property
    def size(self) -> int:
        """Size of all files in bytes."""
        return sum(file.stat().st_size for file in self.files)

    def content_hash(self) -> str:
        """Return the SHA-256 of the file; of several files, that of their names and hashes.

        If the file contains several mappings of tensors, the key of this one is included.
        """
        hashes = [content_hash(file) for file in self.files]
        combined = hashes[0]
        if len(hashes) > 1:
            lines = [f"{value}  {file.name}\n" for value, file in zip(hashes, self.files, strict=True)]
            combined = hashlib.sha256("".join(lines).encode()).hexdigest()
        return hashlib.sha256(f"{combined} {self.state_key}".encode()).hexdigest() if self.others else combined

    def __contains__(self, name: str) -> bool:
        return name in self.layout

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def _stated(self) -> StatedMetadata:
        return read_metadata(self)

    def _entry(self, name: str) -> tuple[str, tuple[int, ...]]:
        if name not in self.layout:
            near = difflib.get_close_matches(name, self.names, n=3)
            hint = f"; nearest names: {', '.join(near)}" if near else ""
            raise DataError(f"{self.path}: no tensor {name!r}{hint}")
        return self.layout[name]

"""Opening a checkpoint of any format: tensors by name, one at a time. Nothing but inert data is ever unpickled."""

import difflib
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt_probe.addresses import as_path
from ckpt_probe.checkpoints.contents import Asked, Contents, Shard, renamed
from ckpt_probe.checkpoints.folders import config_beside
from ckpt_probe.checkpoints.formats import opened
from ckpt_probe.checkpoints.integrity import require_hash, tensor_hash
from ckpt_probe.checkpoints.metadata import CheckpointMetadata
from ckpt_probe.checkpoints.trainers import HYPERPARAMETERS, Told, told_by_trainer
from ckpt_probe.checkpoints.writing import Layout
from ckpt_probe.errors import DataError
from ckpt_probe.files import content_hash
from ckpt_probe.keywords import checked_keywords

if TYPE_CHECKING:
    from torch import Tensor

State = Mapping[str, "Tensor"]
"""A state dict that is read, never changed."""


class Checkpoint:
    """An open checkpoint: names, shapes and dtypes; tensors are read when asked for."""

    def __init__(self, path: Path, contents: Contents) -> None:
        self.path = path
        """As it was named: a file or a directory."""
        self.names: list[str] = sorted(contents.layout)
        self.raw_metadata: dict[str, str] = dict(contents.metadata)
        """The strings of a safetensors header, none of any other format."""
        self._contents = contents

    @cached_property
    def metadata(self) -> CheckpointMetadata:
        """Our metadata; of a foreign file the step, epoch and metrics that its trainer tells, and nothing else.

        Raises DataError where it is of a newer format or broken.
        """
        ours = self._ours
        return replace(
            ours,
            step=self._told.step if ours.step is None else ours.step,
            epoch=self._told.epoch if ours.epoch is None else ours.epoch,
            metrics=ours.metrics or {split: dict(values) for split, values in self._told.metrics.items()},
        )

    @property
    def step_source(self) -> str | None:
        """Where the step of the metadata is said: "metadata", the trainer's field or file; None where it is not."""
        return self._told.source if self._ours.step is None else "metadata"

    @property
    def format(self) -> str:
        """What kind of file it is, for people."""
        return self._contents.format

    @property
    def state_key(self) -> str | None:
        """Where among what was pickled the tensors lay, keys joined by dots; None where they are the whole."""
        return self._contents.state_key

    @property
    def others(self) -> tuple[str, ...]:
        """Other mappings of tensors in the file, which were not taken, with their sizes."""
        return self._contents.others

    @property
    def dropped(self) -> tuple[str, ...]:
        """Entries among the tensors that are no tensors, and are not read."""
        return self._contents.dropped

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What the trainer keeps beside the tensors, as plain values: hyperparameters, its state, its name."""
        return dict(self._told.facts)

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """What Lightning's module was constructed with, where it kept that, without what was shortened."""
        found = self.facts.get(HYPERPARAMETERS)
        whole = found if isinstance(found, dict) else {}
        return {name: value for name, value in whole.items() if "…" not in f"{name} {value}"}

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that belongs to it, those of an adapter's base among them."""
        return self._contents.files

    @property
    def file(self) -> Path:
        """The one file by which it is opened: of several, the index or the metadata."""
        return self._contents.path

    @property
    def config_directory(self) -> Path | None:
        """The directory of its files with a `config.json` that may say what model it is of; else that of its base's."""
        return next((found for file in (self.file, *self.files) if (found := config_beside(file))), None)

    @property
    def shards(self) -> tuple[Shard, ...]:
        """Of safetensors, the files that the tensors lie in, in their order."""
        return self._contents.shards

    @property
    def index(self) -> Path | None:
        """The index of safetensors' shards, where there is one."""
        return self._contents.index

    @property
    def layout(self) -> Layout:
        """dtype and shape of every tensor by name, in the order of the file."""
        return self._contents.layout

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it."""
        return self._entry(name)[1]

    def dtype(self, name: str) -> str:
        """safetensors' name of one tensor's dtype ("F32", "BF16", "I64", …), without reading it."""
        return self._entry(name)[0]

    def read(self, name: str) -> "Tensor":
        """One tensor, on the CPU.

        Raises DataError for a name that the checkpoint does not have, and where the bytes are not those that were
        hashed as they were written.
        """
        self._entry(name)
        return self._contents.read(name)

    def fill(self, name: str, offset: int, into: memoryview) -> None:
        """Copy a tensor's bytes, in C order, from an offset on, into the whole of a buffer; safetensors without torch.

        Several threads may ask at once. Parts are checked against no hash: see `require_digests`.
        """
        self._contents.fill(name, offset, into)

    def state_dict(self) -> "dict[str, Tensor]":
        """All tensors by name."""
        return {name: self.read(name) for name in self.names}

    def extra_state(self) -> Mapping[str, Any]:
        """Return the values of modules' `get_extra_state` that are no tensors, by name."""
        return self._contents.extra()

    def renamed(self, names: Mapping[str, str]) -> "Checkpoint":
        """Return this checkpoint with other names for its tensors: new name → present name; others are left out."""
        return Checkpoint(self.path, renamed(self._contents, names))

    def is_hashed(self, name: str) -> bool:
        """Whether the file states a hash of this tensor, against which every `read` checks it."""
        return name in self._contents.hashes

    def require_digests(self, name: str, digests: Iterable[bytes]) -> None:
        """Raise DataError where `piece_digests` of all of a tensor's bytes are not those of what was written."""
        require_hash(self.path, name, tensor_hash(self._entry(name), digests), self._contents.hashes.get(name))

    def parameters(self) -> int:
        """How many numbers all tensors hold together."""
        return sum(math.prod(self.shape(name)) for name in self.names)

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.stat().st_size for file in self.files)

    def content_hash(self) -> str:
        """SHA-256 of its file; of several, of their names and hashes; of one among several mappings, of its key too."""
        hashes = [content_hash(file) for file in self.files]
        named = "".join(f"{found}  {file.name}\n" for found, file in zip(hashes, self.files, strict=True))
        found = hashes[0] if len(hashes) == 1 else hashlib.sha256(named.encode()).hexdigest()
        return hashlib.sha256(f"{found} {self.state_key}".encode()).hexdigest() if self.others else found

    def __contains__(self, name: str) -> bool:
        return name in self._contents.layout

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def _ours(self) -> CheckpointMetadata:
        try:
            return CheckpointMetadata.from_strings(self.raw_metadata)
        except DataError as error:
            raise DataError(f"{self.path}: {error}") from error

    @cached_property
    def _told(self) -> Told:
        return told_by_trainer(self._contents)

    def _entry(self, name: str) -> tuple[str, tuple[int, ...]]:
        if name not in self._contents.layout:
            near = difflib.get_close_matches(name, self.names, n=3)
            hint = f"; nearest names: {', '.join(near)}" if near else ""
            raise DataError(f"{self.path}: no tensor {name!r}{hint}")
        return self._contents.layout[name]


@checked_keywords
@contextmanager
def open_checkpoint(
    path: Path | str, *, state_key: str | None = None, base: Path | str | None = None
) -> Iterator[Checkpoint]:
    """Open a checkpoint for the time of the `with`: a file, or a directory that holds one. `formats` lists the kinds.

    state_key: where the tensors lie among what was pickled, keys joined by dots, or what their names begin with, where
    there are several mappings of them. base: the checkpoint that an adapter is merged onto; of use to adapters alone.
    Raises DataError where there is no checkpoint, or one that is damaged, claims more bytes than its files have, or
    names what is not inert; UsageError where `state_key` or `base` has to be said, or leads nowhere.
    """
    with ExitStack() as stack:
        onto = None
        if base is not None:
            onto = stack.enter_context(opened(as_path(base), Asked(state_key)))
        contents = stack.enter_context(opened(as_path(path), Asked(state_key, onto)))
        yield Checkpoint(as_path(path), contents)

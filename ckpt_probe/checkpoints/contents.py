"""The common description of an open checkpoint, which every format creates."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt_probe.checkpoints.tensors import Layout
from ckpt_probe.errors import UsageError, listed

if TYPE_CHECKING:
    from torch import Tensor


MONITORED = "monitored"
"""Entry of `Contents.extras` with the scores by which a trainer selects checkpoints."""


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


@dataclass(frozen=True)
class Contents:
    """The tensors of an open checkpoint, and the other information in its files.

    Attributes:
        path: File that was opened: of several, the one that names the others.
        format: Description of the format.
        files: All files of the checkpoint.
        layout: Dtype and shape of each tensor by name.
        read: Function that returns a tensor on the CPU, checked against `hashes`.
        fill: Function that copies bytes of a tensor in C order, from an offset, into a whole buffer.
        metadata: Texts of a safetensors header.
        hashes: Hashes of tensors by name, if the file states them.
        extras: Objects that were pickled with the tensors, as plain values.
        extra: Function that returns the values of modules' `get_extra_state` that are not tensors, by name.
        state_key: Key of the tensors in the pickled object; None if they are not nested.
        others: Descriptions of other mappings of tensors in the file.
        dropped: Entries among the tensors that are not tensors.
        shards: Safetensors files with the tensors, if copies should be divided in the same way.
        index: Index of the shards.
    """

    path: Path
    format: str
    files: tuple[Path, ...]
    layout: Layout
    read: "Callable[[str], Tensor]"
    fill: Callable[[str, int, memoryview], None]
    metadata: Mapping[str, str] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)
    extra: Callable[[], Mapping[str, Any]] = dict
    state_key: str | None = None
    others: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    shards: tuple[Shard, ...] = ()
    index: Path | None = None


def with_prefix(contents: Contents, prefix: str) -> Contents:
    """Return only the tensors whose names start with a prefix and a dot, without it: one of two networks in one file.

    Raises:
        UsageError: If no name starts with the prefix.
    """
    start = f"{prefix}."
    layout = {name.removeprefix(start): kind for name, kind in contents.layout.items() if name.startswith(start)}
    if not layout:
        prefixes = list(dict.fromkeys(name.partition(".")[0] for name in contents.layout))
        raise UsageError(
            f"{contents.path}: `state_key={prefix!r}`: no tensor name starts with it; names start with "
            f"{listed(prefixes)}"
        )

    def extra() -> dict[str, Any]:
        return {name.removeprefix(start): v for name, v in contents.extra().items() if name.startswith(start)}

    inner = renamed(contents, {name: start + name for name in layout})
    # Copies of the shards would contain the other tensors too.
    return replace(inner, extra=extra, state_key=prefix, shards=(), index=None)


def renamed(contents: Contents, names: Mapping[str, str]) -> Contents:
    """Return contents with other names of tensors: new name → name in the file; other tensors are left out."""
    return replace(
        contents,
        layout={new: contents.layout[old] for new, old in names.items()},
        read=lambda name: contents.read(names[name]),
        fill=lambda name, offset, into: contents.fill(names[name], offset, into),
        hashes={new: contents.hashes[old] for new, old in names.items() if old in contents.hashes},
    )

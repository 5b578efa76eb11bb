"""What a format gives of an open checkpoint, and what it is asked for; the rest of the house sees only this."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt_probe.checkpoints.writing import Layout
from ckpt_probe.errors import UsageError, listed

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Asked:
    """What the caller says of a checkpoint that it does not say itself.

    state_key: where the tensors lie in what was pickled; base: the checkpoint that an adapter is merged onto.
    """

    state_key: str | None = None
    base: "Contents | None" = None


@dataclass(frozen=True)
class Shard:
    """One of the files that the tensors lie in: its name, theirs in the order of their bytes, and its metadata."""

    name: str
    tensors: tuple[str, ...]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Contents:
    """The tensors of a checkpoint by name, how to read one, and what else stands there.

    path: the file that was opened, of several the one that names the others; files: all of them. read: a tensor, on
    the CPU. fill: bytes of a tensor in C order, from an offset on, into the whole of a buffer.
    metadata: the strings of a safetensors header. hashes: of tensors by name, where the file states them; `read` has
    checked against them. beside: what was pickled with the tensors, plain values.
    state_key: where the tensors lay, None where nothing is nested; others: mappings of tensors that were not taken, as
    text. dropped: entries among the tensors that are none. index: of the shards, where there is one.
    """

    path: Path
    format: str
    files: tuple[Path, ...]
    layout: Layout
    read: "Callable[[str], Tensor]"
    fill: Callable[[str, int, memoryview], None]
    metadata: Mapping[str, str] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    beside: Mapping[str, Any] = field(default_factory=dict)
    state_key: str | None = None
    others: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    shards: tuple[Shard, ...] = ()
    index: Path | None = None


def below(contents: Contents, prefix: str) -> Contents:
    """The tensors whose names begin with a prefix and a dot, called without them: one of two networks saved as one.

    Raises UsageError where there is none.
    """
    start = f"{prefix}."
    layout = {name.removeprefix(start): kind for name, kind in contents.layout.items() if name.startswith(start)}
    if not layout:
        there = list(dict.fromkeys(name.partition(".")[0] for name in contents.layout))
        raise UsageError(
            f"{contents.path}: --state-key {prefix}: no tensor name starts with it; names start with {listed(there)}"
        )
    # The files of the shards have the other network's tensors too.
    return replace(renamed(contents, {name: start + name for name in layout}), state_key=prefix, shards=(), index=None)


def renamed(contents: Contents, names: Mapping[str, str]) -> Contents:
    """Return contents whose tensors are called by other names: new name → name in the file; others are left out."""
    return replace(
        contents,
        layout={new: contents.layout[old] for new, old in names.items()},
        read=lambda name: contents.read(names[name]),
        fill=lambda name, offset, into: contents.fill(names[name], offset, into),
        hashes={new: contents.hashes[old] for new, old in names.items() if old in contents.hashes},
    )

"""Checkpoints of one run that hold identical weights, found without reading all of them."""

import math
from collections.abc import Hashable, Iterator
from pathlib import Path

from ckpt_probe.checkpoints.reading import Checkpoint, open_checkpoint
from ckpt_probe.checkpoints.writing import BITS
from ckpt_probe.series import Member

BLOCK = 2**22
"""Bytes of two checkpoints that are compared at a time."""
SAMPLED = 16
"""Tensors of a checkpoint whose first bytes are compared before anything else is read."""
FIRST = 256
"""Bytes that are read of a sampled tensor."""


class RepeatedWeights:
    """Search for members of a series whose weights are those of an earlier member."""

    def __init__(self, state_key: str | None, base: Path | str | None) -> None:
        self._state_key, self._base = state_key, base
        self._seen: dict[Hashable, list[Member]] = {}

    def warnings(self, member: Member) -> Iterator[str]:
        """Yield a warning if a member that was passed before has identical weights."""
        with open_checkpoint(member.path, state_key=self._state_key, base=self._base) as checkpoint:
            alike = self._seen.setdefault(_sample(checkpoint), [])
        earlier = next((m for m in alike if have_same_weights(m, member, self._state_key, self._base)), None)
        if earlier is None:
            alike.append(member)
            return
        yield f"warning: the weights of {_with_step(member)} are identical to those of {_with_step(earlier)}"


def have_same_weights(a: Member, b: Member, state_key: str | None, base: Path | str | None) -> bool:
    """Return whether two checkpoints hold the same weights, reading both up to the first difference."""
    if a.path.resolve() == b.path.resolve():
        return True
    with (
        open_checkpoint(a.path, state_key=state_key, base=base) as first,
        open_checkpoint(b.path, state_key=state_key, base=base) as second,
    ):
        same_layout = dict(first.layout) == dict(second.layout)
        return same_layout and all(_same_bytes(first, second, name) for name in first.names)


def _same_bytes(first: Checkpoint, second: Checkpoint, name: str) -> bool:
    if first.dtype(name) not in BITS:
        return False
    size = _size(first, name)
    for start in range(0, size, BLOCK):
        count = min(BLOCK, size - start)
        if _bytes(first, name, start, count) != _bytes(second, name, start, count):
            return False
    return True


def _sample(checkpoint: Checkpoint) -> Hashable:
    """Return names, dtypes, shapes and the first bytes of tensors at even distances, the last among them."""
    names = [name for name in reversed(checkpoint.names) if checkpoint.dtype(name) in BITS]
    sampled = names[:: math.ceil(len(names) / SAMPLED) or 1]
    starts = tuple(bytes(_bytes(checkpoint, name, 0, min(FIRST, _size(checkpoint, name)))) for name in sampled)
    return tuple(sorted(checkpoint.layout.items())), starts


def _bytes(checkpoint: Checkpoint, name: str, start: int, count: int) -> bytearray:
    buffer = bytearray(count)
    checkpoint.fill(name, start, memoryview(buffer))
    return buffer


def _size(checkpoint: Checkpoint, name: str) -> int:
    return math.prod(checkpoint.shape(name)) * BITS[checkpoint.dtype(name)] // 8


def _with_step(member: Member) -> str:
    return member.name if member.step is None else f"{member.name} (step {member.step:,})"

"""Hashes of tensors from their blocks, which several threads read and write in any order."""

from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from typing import Any

from ckpt_probe.checkpoints import Checkpoint
from ckpt_probe.checkpoints.integrity import piece_digests, tensor_hash
from ckpt_probe.checkpoints.writing import Layout


class Digests:
    """Of the pieces of each block; every block but a tensor's last has to be whole pieces."""

    def __init__(self, sources: Sequence[Checkpoint]) -> None:
        self._sources = sources
        # One flat mapping each, since several threads add at once.
        self._read: dict[tuple[int, str, int], list[bytes]] = {}
        self._written: dict[tuple[str, int], list[bytes]] = {}

    def read(self, name: str, first: int, parts: Sequence[Any]) -> None:
        """The block of a tensor from number `first` on, as each source has it; those that state no hash are passed."""
        for number, (source, part) in enumerate(zip(self._sources, parts, strict=False)):
            if source.is_hashed(name):
                self._read[number, name, first] = piece_digests(part)

    def written(self, name: str, first: int, part: Any) -> None:
        """The block of a tensor from number `first` on, as it was written."""
        self._written[name, first] = piece_digests(part)

    def require_sources(self) -> None:
        """Raise DataError, naming file and tensor, where what was read is not what was once written there."""
        for (number, name), digests in _in_order(self._read):
            self._sources[number].require_digests(name, digests)

    def hashes(self, layout: Layout) -> dict[str, str]:
        """Of every tensor that was written."""
        found = {name: list(digests) for (name,), digests in _in_order(self._written)}
        return {name: tensor_hash(kind, found.get(name, ())) for name, kind in layout.items()}


def _in_order(blocks: dict[Any, list[bytes]]) -> Iterator[tuple[tuple, Iterator[bytes]]]:
    for key, keys in groupby(sorted(blocks), key=lambda place: place[:-1]):
        yield key, chain.from_iterable(blocks[place] for place in keys)

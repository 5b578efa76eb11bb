"""Hash tensors by blocks, which several threads read and write in any order."""

from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from typing import Any

from ckpt_probe.checkpoints import Checkpoint
from ckpt_probe.checkpoints.integrity import piece_digests, tensor_hash
from ckpt_probe.checkpoints.writing import Layout


class Digests:
    """Hashes of the pieces of each block; every block of a tensor except the last must consist of complete pieces.

    Args:
        sources: Checkpoints that are read.
    """

    def __init__(self, sources: Sequence[Checkpoint]) -> None:
        self._sources = sources
        # Flat mappings, because several threads add to them at the same time.
        self._read: dict[tuple[int, str, int], list[bytes]] = {}
        self._written: dict[tuple[str, int], list[bytes]] = {}

    def read(self, name: str, first: int, parts: Sequence[Any]) -> None:
        """Hash a block of a tensor as read from each source; sources without stored hashes are skipped.

        Args:
            name: Name of the tensor.
            first: Index of the block's first number.
            parts: Bytes of the block in each source.
        """
        for number, (source, part) in enumerate(zip(self._sources, parts, strict=False)):
            if source.is_hashed(name):
                self._read[number, name, first] = piece_digests(part)

    def written(self, name: str, first: int, part: Any) -> None:
        """Hash a block of a tensor as written.

        Args:
            name: Name of the tensor.
            first: Index of the block's first number.
            part: Bytes of the block.
        """
        self._written[name, first] = piece_digests(part)

    def require_sources(self) -> None:
        """Raise DataError, naming file and tensor, if bytes that were read do not match the stored hash."""
        for (number, name), digests in _in_order(self._read):
            self._sources[number].require_digests(name, digests)

    def hashes(self, layout: Layout) -> dict[str, str]:
        """Return the hash of every tensor that was written."""
        digests = {name: list(pieces) for (name,), pieces in _in_order(self._written)}
        return {name: tensor_hash(kind, digests.get(name, ())) for name, kind in layout.items()}


def _in_order(blocks: dict[Any, list[bytes]]) -> Iterator[tuple[tuple, Iterator[bytes]]]:
    for tensor, keys in groupby(sorted(blocks), key=lambda key: key[:-1]):
        yield tensor, chain.from_iterable(blocks[key] for key in keys)

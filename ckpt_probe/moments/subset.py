"""A fixed subset of rows that come block by block: the same ones for whoever brings as many, in blocks of any size."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

ROWS = 2048
"""Rows of the subset where a caller names no other number."""


class Subset:
    """Keeps `size` rows of a stream, drawn without replacement by a seed, of every array that has them.

    Each row gets a number from the seed, and those with the smallest are kept: which ones depends on the seed and on
    how many rows there are, and on nothing else.
    """

    def __init__(self, size: int = ROWS, seed: int = 0) -> None:
        self.size = size
        self.seed = seed
        self._draw = np.random.default_rng(seed)
        self._numbers = np.empty(0)
        self._indices = np.empty(0, dtype=np.int64)
        self._rows: dict[str, Tensor] = {}
        self._seen = 0

    def update(self, count: int, arrays: Mapping[str, Tensor]) -> None:
        """Add the next `count` rows: arrays (count, D) by name, the same names each time."""
        drawn = self._draw.random(count)
        worst = self._numbers.max() if len(self._numbers) == self.size else np.inf
        new = np.flatnonzero(drawn < worst)
        if len(new):
            numbers = np.concatenate([self._numbers, drawn[new]])
            kept = np.sort(np.argsort(numbers, kind="stable")[: self.size])
            before = len(self._numbers)
            old, coming = torch.from_numpy(kept[kept < before]), torch.from_numpy(new[kept[kept >= before] - before])
            for name, array in arrays.items():
                fresh = array[coming]
                self._rows[name] = torch.cat([self._rows[name][old], fresh]) if name in self._rows else fresh
            self._numbers = numbers[kept]
            self._indices = np.concatenate([self._indices, self._seen + new])[kept]
        self._seen += count

    @property
    def indices(self) -> Tensor:
        """The places of the rows kept, (R,), ascending; R is at most `size`."""
        return torch.from_numpy(self._indices)

    @property
    def rows(self) -> dict[str, Tensor]:
        """The rows kept of each array, (R, D), in the order of their places."""
        return self._rows


def chosen_rows(count: int, size: int = ROWS, seed: int = 0) -> Tensor:
    """The places of the rows that a `Subset` keeps of `count` rows, (R,)."""
    subset = Subset(size, seed)
    subset.update(count, {})
    return subset.indices

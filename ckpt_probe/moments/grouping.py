"""Labelled rows sorted by class, and stacks of classes of similar size."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ckpt_probe.metrics.rows import directions, where_float64_is

RowBlocks = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Starts a new pass over blocks of features (n, D) and labels (n,), with the same rows in the same order each time."""

CACHED_BYTES = 2**24
"""Bytes of float64 rows that are processed at a time; rows that fit into the processor's cache are twice as fast."""

SUBSET_ROWS = 2048
"""Default number of rows of a subset."""


@dataclass(frozen=True)
class Grouped:
    """Rows sorted by label.

    Attributes:
        rows: The rows, (n, D).
        labels: Labels that occur, in increasing order, (k,).
        sizes: Number of rows of each label, (k,).
    """

    rows: Tensor
    labels: Tensor
    sizes: Tensor

    def by_class(self) -> list[Tensor]:
        """Return views of the rows of each class, (n_c, D)."""
        return list(self.rows.split(self.sizes.tolist()))

    def each(self) -> Tensor:
        """Return for every row the position of its class in `labels`, (n,)."""
        return torch.repeat_interleave(torch.arange(len(self.labels), device=self.labels.device), self.sizes)

    def to(self, dtype: torch.dtype) -> "Grouped":
        """Return the rows in another precision."""
        return Grouped(self.rows.to(dtype), self.labels, self.sizes)

    def pieces(self) -> Iterator[slice]:
        """Yield slices of the rows that are processed at a time."""
        at_once = cached_rows(self.rows.shape[1])
        for start in range(0, len(self.rows), at_once):
            yield slice(start, min(start + at_once, len(self.rows)))

    def split(self) -> "Iterator[Grouped]":
        """Yield groups of at most the number of rows that are processed at a time."""
        pieces = list(self.pieces())
        if len(pieces) <= 1:
            yield self
            return
        each = self.each()
        for piece in pieces:
            yield group(self.rows[piece], self.labels[each[piece]])

    def where(self, mask: Tensor) -> "Grouped":
        """Return the rows that a mask (n,) selects."""
        if bool(mask.all()):
            return self
        return group(self.rows[mask], self.labels[self.each()[mask]])


def cached_rows(features: int) -> int:
    """Return the number of rows of D `features` that are processed at a time."""
    return max(1, CACHED_BYTES // (8 * features))


def group(rows: Tensor, labels: Tensor) -> Grouped:
    """Sort rows (n, D) by their labels (n,); rows of one class stay in their order."""
    if len(labels) > 1 and bool((labels[1:] < labels[:-1]).any()):
        order = torch.argsort(labels, stable=True)
        # Several times faster than rows[order] on the CPU.
        rows, labels = rows.index_select(0, order), labels.index_select(0, order)
    present, sizes = torch.unique_consecutive(labels, return_counts=True)
    return Grouped(rows, present, sizes)


@dataclass(frozen=True)
class Stack:
    """Classes of similar size in one array.

    Attributes:
        classes: Labels of the classes, (k,).
        sizes: Number of rows of each class, (k,).
        rows: Rows of the classes, padded with zero rows, (k, P, D).
        positions: Positions of the rows among all rows, (k, P); padding has the number of all rows.
    """

    classes: Tensor
    sizes: Tensor
    rows: Tensor
    positions: Tensor


def stacks(rows: Tensor, labels: Tensor, *, first: int = 0, total: int | None = None) -> Iterator[Stack]:
    """Yield stacks of classes whose sizes differ by less than a factor of two.

    Args:
        rows: Rows (n, D).
        labels: Labels (n,).
        first: Position of the first row among all rows.
        total: Number of all rows; n if None.
    """
    order = torch.argsort(labels, stable=True)
    present, sizes = torch.unique_consecutive(labels[order], return_counts=True)
    starts = sizes.cumsum(0) - sizes
    padding = len(labels) if total is None else total
    doublings = torch.log2(sizes.double()).floor()
    for doubling in doublings.unique().tolist():
        chosen = (doublings == doubling).nonzero().squeeze(1)
        longest = int(sizes[chosen].max())
        offsets = torch.arange(longest, device=labels.device)
        real = offsets < sizes[chosen, None]
        sources = order[torch.where(real, starts[chosen, None] + offsets, 0)]
        positions = torch.where(real, sources + first, padding)
        yield Stack(present[chosen], sizes[chosen], rows[sources] * real[:, :, None], positions)


def unit_blocks(rows: RowBlocks, device: torch.device | None, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the rows that have a direction, scaled to unit length (m, D), and their labels (m,), block by block."""
    for features, labels in rows():
        unit, directed = directions(where_float64_is(features).to(device, torch.float64))
        yield unit.to(dtype), labels.to(device, torch.int64)[directed]

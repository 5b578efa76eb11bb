"""Labelled rows by class: sorted blocks, and stacks of classes of about the same size, so that no loop is over rows."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ckpt_probe.metrics.gram import directions, where_float64_is

Rows = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Gives a fresh pass over blocks of features (n, D) and labels (n,), the same rows in the same order each time."""


@dataclass(frozen=True)
class Grouped:
    """Rows sorted by label: rows (n, D), the labels present (k,) in increasing order, how many rows each has (k,)."""

    rows: Tensor
    labels: Tensor
    sizes: Tensor

    def by_class(self) -> list[Tensor]:
        """Views of each class's rows, (n_c, D)."""
        return list(self.rows.split(self.sizes.tolist()))

    def each(self) -> Tensor:
        """For every row the position of its class among `labels`, (n,)."""
        return torch.repeat_interleave(torch.arange(len(self.labels), device=self.labels.device), self.sizes)

    def where(self, kept: Tensor) -> "Grouped":
        """Only the rows that `kept` (n,) marks."""
        if bool(kept.all()):
            return self
        return group(self.rows[kept], self.labels[self.each()[kept]])


def group(rows: Tensor, labels: Tensor) -> Grouped:
    """Rows (n, D) sorted by their labels (n,), rows of one class in the order in which they came."""
    if len(labels) > 1 and bool((labels[1:] < labels[:-1]).any()):
        order = torch.argsort(labels, stable=True)
        rows, labels = rows[order], labels[order]
    present, sizes = torch.unique_consecutive(labels, return_counts=True)
    return Grouped(rows, present, sizes)


@dataclass(frozen=True)
class Stack:
    """Some classes of about the same size: rows (k, P, D) padded with zero rows, and where each row stood.

    classes: their labels (k,); sizes: their numbers of rows (k,); places: (k, P) positions of the rows among all, the
    padding's one past the last.
    """

    classes: Tensor
    sizes: Tensor
    rows: Tensor
    places: Tensor


def stacks(rows: Tensor, labels: Tensor, *, first: int = 0, total: int | None = None) -> Iterator[Stack]:
    """Rows (n, D) as stacks of classes whose sizes differ by less than a factor of two.

    `first` is the position of the first row among all `total` rows.
    """
    order = torch.argsort(labels, stable=True)
    present, sizes = torch.unique_consecutive(labels[order], return_counts=True)
    starts = sizes.cumsum(0) - sizes
    beyond = len(labels) if total is None else total
    doublings = torch.log2(sizes.double()).floor()
    for doubling in doublings.unique().tolist():
        chosen = (doublings == doubling).nonzero().squeeze(1)
        longest = int(sizes[chosen].max())
        offsets = torch.arange(longest, device=labels.device)
        real = offsets < sizes[chosen, None]
        sorted_places = torch.where(real, starts[chosen, None] + offsets, 0)
        padded = rows[order[sorted_places]] * real[:, :, None]
        places = torch.where(real, order[sorted_places] + first, beyond)
        yield Stack(present[chosen], sizes[chosen], padded, places)


def unit_blocks(rows: Rows, device: torch.device | None, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows that have a direction, scaled to unit length (m, D), and their labels (m,), block by block."""
    for features, labels in rows():
        unit, kept = directions(where_float64_is(features).to(device, torch.float64))
        yield unit.to(dtype), labels.to(device, torch.int64)[kept]

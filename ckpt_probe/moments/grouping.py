"""Labelled rows by class: sorted blocks, and stacks of classes of about the same size, so that no loop is over rows."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ckpt_probe.metrics.gram import directions, where_float64_is

Rows = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Gives a fresh pass over blocks of features (n, D) and labels (n,), the same rows in the same order each time."""

CACHED_BYTES = 2**24
"""Bytes of float64 rows that are worked on at once: what the processor's cache holds is twice as fast."""


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

    def to(self, dtype: torch.dtype) -> "Grouped":
        """The same in another precision."""
        return Grouped(self.rows.to(dtype), self.labels, self.sizes)

    def pieces(self) -> Iterator[slice]:
        """Slices of the rows that are worked on at once."""
        at_once = cached_rows(self.rows.shape[1])
        for start in range(0, len(self.rows), at_once):
            yield slice(start, min(start + at_once, len(self.rows)))

    def split(self) -> "Iterator[Grouped]":
        """The same rows, as many at a time."""
        pieces = list(self.pieces())
        if len(pieces) <= 1:
            yield self
            return
        each = self.each()
        for piece in pieces:
            yield group(self.rows[piece], self.labels[each[piece]])

    def where(self, kept: Tensor) -> "Grouped":
        """Only the rows that `kept` (n,) marks."""
        if bool(kept.all()):
            return self
        return group(self.rows[kept], self.labels[self.each()[kept]])


def cached_rows(features: int) -> int:
    """How many rows of `features` numbers are worked on at once."""
    return max(1, CACHED_BYTES // (8 * features))


def group(rows: Tensor, labels: Tensor) -> Grouped:
    """Rows (n, D) sorted by their labels (n,), rows of one class in the order in which they came."""
    if len(labels) > 1 and bool((labels[1:] < labels[:-1]).any()):
        order = torch.argsort(labels, stable=True)
        # Several times as fast as rows[order] on the CPU.
        rows, labels = rows.index_select(0, order), labels.index_select(0, order)
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


ROWS_AT_ONCE = 4096
"""Rows that one product of a run takes, and their copies in the precision of the product."""


@dataclass(frozen=True)
class Run:
    """`count` classes of `size` rows each, which lie one after another from row `start`.

    classes: where they stand among all classes; whole: whether these are all rows of theirs.
    """

    classes: Tensor | slice
    count: int
    size: int
    start: int
    whole: bool

    def add_sums(self, sums: Tensor, rows: Tensor, x: Tensor) -> None:
        """Add Σ_i x_i z_i over the rows of each class to its (b, D) of `sums` (C, b, D); rows (n, D), x (n, b)."""
        self._add(sums, self._of(x).mT, self._of(rows).to(x.dtype))

    def put_products(self, image: Tensor, rows: Tensor, of_classes: Tensor) -> None:
        """Put z_i · (b, D) of the row's class from `of_classes` (C, b, D) into `image` (n, b)."""
        self._of(image).copy_(torch.bmm(self._of(rows).to(image.dtype), of_classes[self.classes].mT))

    def add_second(self, sums: Tensor, rows: Tensor, a: Tensor, of_classes: Tensor) -> None:
        """Add Σ_i a_i (u · z_i) z_i for each u of a class's (b, D) in `of_classes` to its own in `sums`; a (n, 1)."""
        of_rows = self._of(rows).to(sums.dtype)
        inner = torch.bmm(of_rows, of_classes[self.classes].mT).mul_(self._of(a))
        self._add(sums, inner.mT, of_rows)

    def _add(self, sums: Tensor, given: Tensor, of_rows: Tensor) -> None:
        """Add given (k, b, n) @ of_rows (k, n, D) to the sums of the classes."""
        if isinstance(self.classes, Tensor):
            sums.index_add_(0, self.classes, torch.bmm(given, of_rows))
        elif self.whole:
            torch.bmm(given, of_rows, out=sums[self.classes])
        else:
            sums[self.classes].add_(torch.bmm(given, of_rows))

    def _of(self, values: Tensor) -> Tensor:
        return values[self.start : self.start + self.count * self.size].unflatten(0, (self.count, self.size))


def runs(sizes: Tensor, classes: Tensor | None = None, *, first: int = 0) -> list[Run]:
    """The classes of increasing sizes (k,), at most ROWS_AT_ONCE rows at a time; a class of more rows is cut.

    classes: their numbers (k,), 0 … k−1 where None; first: where the rows of the first one begin.
    """
    found, number = [], 0
    distinct, repeats = torch.unique_consecutive(sizes, return_counts=True)
    for size, count in zip(distinct.tolist(), repeats.tolist(), strict=True):
        at_once = max(1, ROWS_AT_ONCE // max(1, size))
        for start in range(number, number + count, at_once):
            part = slice(start, min(start + at_once, number + count))
            for cut in range(0, size, ROWS_AT_ONCE):
                height = min(size - cut, ROWS_AT_ONCE) if size > ROWS_AT_ONCE else size
                named = part if classes is None else classes[part]
                found.append(Run(named, part.stop - part.start, height, first + cut, whole=height == size))
            first += size * (part.stop - part.start)
        number += count
    return found


def by_size(labels: Tensor) -> tuple[Tensor, list[Run]]:
    """The order (n,) of rows with these labels (n,) that puts classes of one size side by side, and their runs."""
    present, each, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    order = torch.argsort(counts, stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=order.device)
    return torch.argsort(ranks[each], stable=True), runs(counts[order], present[order])


def unit_blocks(rows: Rows, device: torch.device | None, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows that have a direction, scaled to unit length (m, D), and their labels (m,), block by block."""
    for features, labels in rows():
        unit, kept = directions(where_float64_is(features).to(device, torch.float64))
        yield unit.to(dtype), labels.to(device, torch.int64)[kept]

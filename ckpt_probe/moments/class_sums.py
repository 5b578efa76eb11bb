"""Rows sorted by class, and their sums by class, accumulated and merged exactly: means and within-class scatter."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ckpt_probe.metrics.rows import largest, power_of_two, row_lengths

if TYPE_CHECKING:
    from ckpt_probe.moments.errors.sample import Sample

RowBlocks = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Starts a new pass over blocks of features (n, D) and labels (n,), with the same rows in the same order each time."""

CACHED_BYTES = 2**24
"""Bytes of float64 rows that are processed at a time; rows that fit into the processor's cache are twice as fast."""

BLOCKS_AT_ONCE = 8
"""With many classes, this number of cached blocks is sorted together, so that each has more rows per class."""

STRIP = 96
"""Columns of a strip of `add_outer`, twice as many for more than 256 features; narrower strips are less efficient."""

LOOP_ROWS = 32
"""Rows per class from which a loop over classes is faster than gathering the mean of each row."""

SAFE = {torch.float64: 200, torch.float32: 8}
"""Exponents of two, up and down, between which products of rows in a precision neither overflow nor underflow."""

FEW_ROWS = 32
"""With fewer rows, subtracting their mean would add much to the work of their product, which is then in float64."""


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

    def split(self) -> "Iterable[Grouped]":
        """Return groups of at most the number of rows that are processed at a time."""
        if len(self.rows) <= cached_rows(self.rows.shape[1]):
            return [self]
        each = self.each()
        return (group(self.rows[piece], self.labels[each[piece]]) for piece in self.pieces())


def cached_rows(features: int) -> int:
    """Return the number of rows of D `features` that are processed at a time."""
    return max(1, CACHED_BYTES // (8 * features))


def rows_at_once(features: int, classes: int) -> int:
    """Return the number of rows that `Moments.update` sorts together; more if each class has few rows."""
    cached = cached_rows(features)
    return cached if cached >= LOOP_ROWS * classes else BLOCKS_AT_ONCE * cached


def group(rows: Tensor, labels: Tensor) -> Grouped:
    """Sort rows (n, D) by their labels (n,); rows of one class stay in their order."""
    if len(labels) > 1 and bool((labels[1:] < labels[:-1]).any()):
        order = torch.argsort(labels, stable=True)
        # Several times faster than rows[order] on the CPU.
        rows, labels = rows.index_select(0, order), labels.index_select(0, order)
    present, sizes = torch.unique_consecutive(labels, return_counts=True)
    return Grouped(rows, present, sizes)


def add_outer(total: Tensor, rows: Tensor) -> None:
    """Add rowsᵀ rows to `total` in place, at little more than half the work of the complete product.

    Only the triangle on and below the diagonal is valid afterwards; `symmetric` completes it.

    Args:
        total: Sum, (D, D), of the dtype of the rows, or float64 for float32 rows.
        rows: Rows, (n, D).
    """
    features = rows.shape[1]
    width = STRIP if features <= 256 else 2 * STRIP
    for start in range(0, features, width):
        stop = min(start + width, features)
        if rows.dtype == total.dtype:
            total[start:stop, :stop].addmm_(rows[:, start:stop].T, rows[:, :stop])
        else:
            total[start:stop, :stop] += rows[:, start:stop].T @ rows[:, :stop]


def add_outer_about_mean(total: Tensor, rows: Tensor, dtype: torch.dtype) -> float:
    """Add rowsᵀ rows as the products of centred rows and of their mean, so that similar rows lose no digit.

    Args:
        total: Sum as of `add_outer`, (D, D), float64.
        rows: Rows, (n, D), float64.
        dtype: Precision of the products.

    Returns:
        Rounding of the trace by products in single precision.
    """
    if len(rows) < FEW_ROWS:
        add_outer(total, rows)
        return 0.0
    mean = rows.mean(dim=0)
    centred = rows - mean
    add_outer(total, centred.to(dtype))
    add_outer(total, mean[None] * len(rows) ** 0.5)
    return 0.0 if dtype == torch.float64 else torch.finfo(dtype).eps * float(centred.square().sum())


def symmetric(total: Tensor) -> Tensor:
    """Return the complete symmetric matrices (…, D, D) for lower triangles that `add_outer` has filled."""
    lower = total.tril()
    return lower + lower.tril(-1).mT


class Scatter:
    """Count, mean and Σ‖z − μ_c‖² of each class, and the within-class scatter Σ (z − μ_c)(z − μ_c)ᵀ of all classes.

    Updates are centred on the running mean (Chan, Golub and LeVeque 1979), never E[z²] − E[z]². Rows are divided by
    `unit`, a power of two, which is 1 unless squares of the rows would overflow or underflow.

    Args:
        features: Number of features D.
        device: Device of the sums.
        products: Whether the within-class scatter is accumulated.
        dtype: Precision of products of centred rows; everything else is float64.

    Attributes:
        counts: Number of rows of each class, (C,); C grows with the labels.
        means: Class means in units of `unit`, (C, D).
        squares: Σ‖z − μ_c‖² of each class, (C,).
        within: Lower triangle of the within-class scatter, (D, D), or None.
        size: Largest absolute entry of all rows.
        unit: Unit of all sums.
        sizes: Number of rows of each class, (C,), float64; after `along` a function of the weights of rows.
    """

    def __init__(
        self, features: int, device: torch.device, *, products: bool = True, dtype: torch.dtype = torch.float64
    ) -> None:
        self.counts = torch.zeros(0, dtype=torch.int64, device=device)
        self.means = torch.zeros(0, features, dtype=torch.float64, device=device)
        self.squares = torch.zeros(0, dtype=torch.float64, device=device)
        self.within = torch.zeros(features, features, dtype=torch.float64, device=device) if products else None
        self.size = 0.0
        self.unit = 1.0
        self.dtype = dtype
        self._sizes: Tensor | None = None

    @property
    def sizes(self) -> Tensor:
        """Return the number of rows of each class, (C,), float64."""
        return self.counts.double() if self._sizes is None else self._sizes

    @property
    def present(self) -> Tensor:
        """Return the labels of the classes that have a sample, in increasing order."""
        return self.counts.nonzero().squeeze(1)

    @property
    def lengths(self) -> Tensor:
        """Return the root mean square length of the rows of each class, (C,)."""
        return torch.hypot((self.squares.detach() / self.counts.clamp(min=1)).sqrt(), row_lengths(self.means.detach()))

    def state(self) -> dict[str, Tensor]:
        """Return copies of all sums by name, and the unit if it is not 1."""
        copy = Scatter(self.means.shape[1], self.counts.device, products=self.within is not None)
        copy.merge(self)
        state = {"counts": copy.counts, "means": copy.means, "squares": copy.squares}
        if copy.within is not None:
            state["within"] = symmetric(copy.within)
        return state if copy.unit == 1 else {**state, "unit": copy.means.new_tensor(copy.unit)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Replace all sums by the tensors of a state, which become part of this object."""
        self.counts, self.means, self.squares = (state[name] for name in ("counts", "means", "squares"))
        if self.within is not None:
            self.within = state["within"].contiguous()
        self.unit = float(state["unit"]) if "unit" in state else 1.0
        self.size = 0.0
        self.fit(largest(self.lengths) * self.unit)

    def covariance(self) -> Tensor:
        """Return Σ_W, the within-class covariance over all samples, (D, D)."""
        assert self.within is not None
        return symmetric(self.within) / self.sizes.sum()

    def along(self, sample: "Sample") -> "Scatter":
        """Return the sums as functions of the weights of the rows of a sample, exact to first order at weight zero."""
        labels, weights = sample.labels, sample.weights
        away = sample.features / self.unit - self.means[labels]
        moved = copy.copy(self)
        moved._sizes = self.counts.double().index_add(0, labels, weights)
        moved.means = self.means.index_add(0, labels, away * (weights / self.counts[labels])[:, None])
        moved.squares = self.squares.index_add(0, labels, away.square().sum(dim=1) * weights)
        if self.within is not None:
            moved.within = _WithProducts.apply(self.within, away, weights)
        return moved

    def fit(self, size: float) -> None:
        """Choose the unit for further rows whose largest absolute entry is `size`."""
        self.size = max(self.size, size)
        unit = power_of_two(self.size, SAFE[self.dtype])
        if unit != self.unit:
            change, self.unit = self.unit / unit, unit
            # Multiply twice: the square of the change may overflow although the result does not.
            self.means = self.means * change
            self.squares = self.squares * change * change
            self.within = None if self.within is None else self.within * change * change

    def update(self, block: Grouped) -> None:
        """Add a block of rows, after `fit` for its largest entry."""
        if self.unit != 1:
            block = Grouped(block.rows.to(torch.float64) / self.unit, block.labels, block.sizes)
        loop = len(block.rows) >= LOOP_ROWS * len(block.labels)
        means, squares = self._sums_by_class(block.to(torch.float64)) if loop else self._sums_by_pieces(block)
        self._merge(block.labels, block.sizes, means, squares)

    def merge(self, other: "Scatter") -> None:
        """Add the rows of another object."""
        device, labels = self.counts.device, other.present
        if not len(labels):
            return
        self.fit(other.size)
        change = other.unit / self.unit
        if self.within is not None and other.within is not None:
            self.within += (other.within * change * change).to(device)
        parts = (other.counts[labels], other.means[labels] * change, other.squares[labels] * change * change)
        self._merge(labels.to(device), *(part.to(device) for part in parts))

    def _sums_by_class(self, block: Grouped) -> tuple[Tensor, Tensor]:
        """Return class means (k, D) and Σ‖z − μ_c‖² of each class (k,), by a loop over the classes."""
        parts, centred = block.by_class(), torch.empty_like(block.rows)
        means = torch.stack([part.mean(dim=0) for part in parts])
        centred_parts = centred.split(block.sizes.tolist())
        for part, mean, target in zip(parts, means, centred_parts, strict=True):
            torch.sub(part, mean, out=target)
        if self.within is not None:
            add_outer(self.within, centred.to(self.dtype))
        return means, torch.stack([torch.linalg.vector_norm(part).square() for part in centred_parts])

    def _sums_by_pieces(self, block: Grouped) -> tuple[Tensor, Tensor]:
        """Return class means (k, D) and Σ‖z − μ_c‖² of each class (k,), by gathering the mean of each row."""
        each = block.each()
        sums = self.means.new_zeros(len(block.labels), block.rows.shape[1])
        for piece in block.pieces():
            sums.index_add_(0, each[piece], block.rows[piece].to(torch.float64))
        means = sums / block.sizes[:, None]
        squares = self.squares.new_zeros(len(means))
        for piece in block.pieces():
            centred = block.rows[piece].to(torch.float64) - means[each[piece]]
            squares.index_add_(0, each[piece], centred.square().sum(dim=1))
            if self.within is not None:
                add_outer(self.within, centred.to(self.dtype))
        return means, squares

    def _merge(self, labels: Tensor, counts: Tensor, means: Tensor, squares: Tensor) -> None:
        if not len(labels):
            return
        self._grow(int(labels[-1]) + 1)
        # float64, because torch divides whole numbers in float32.
        before, counts = self.counts[labels].double(), counts.double()
        total = before + counts
        apart = means - self.means[labels]
        # The distance of two means adds the outer product of this row with itself to the scatter.
        shifts = apart * (before * counts / total).sqrt()[:, None]
        if self.within is not None:
            add_outer(self.within, shifts[before > 0])
        self.squares[labels] += squares + shifts.square().sum(dim=1)
        self.means[labels] += apart * (counts / total)[:, None]
        self.counts[labels] = total.to(torch.int64)

    def _grow(self, classes: int) -> None:
        self.counts = with_rows(self.counts, classes)
        self.means = with_rows(self.means, classes)
        self.squares = with_rows(self.squares, classes)


class _WithProducts(torch.autograd.Function):
    """Σ + Σ_i w_i a_i a_iᵀ at w = 0, of which only the gradient takes any work."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return total.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor]:
        (rows,) = ctx.saved_tensors
        return None, None, ((rows @ gradients[0]) * rows).sum(dim=1)


def with_rows(values: Tensor, count: int) -> Tensor:
    """Return values with zero rows appended up to a number of rows."""
    missing = count - len(values)
    return torch.cat([values, values.new_zeros(missing, *values.shape[1:])]) if missing > 0 else values

"""Sums per class that are accumulated and merged exactly: means and within-class scatter, and unit rows."""

import copy
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ckpt_probe.metrics.rows import EPSILON, directions, largest, power_of_two, row_lengths
from ckpt_probe.moments.grouping import Grouped, group

if TYPE_CHECKING:
    from ckpt_probe.moments.errors import Sample

STRIP = 96
"""Columns of a strip of `add_outer`, twice as many for more than 256 features; narrower strips are less efficient."""

LOOP_ROWS = 32
"""Rows per class from which a loop over classes is faster than gathering the mean of each row."""

SAFE = {torch.float64: 200, torch.float32: 8}
"""Exponents of two, up and down, between which products of rows in a precision neither overflow nor underflow."""

FEW_ROWS = 32
"""With fewer rows, subtracting their mean would add much to the work of their product, which is then in float64."""

DENSE_LIMIT = 12_000
"""Largest side of a matrix for the dense eigensolver (about 1.2 GB and minutes)."""

LEAST_LIMIT = 256
"""Side of a matrix that is given to the dense eigensolver with any memory budget: half a megabyte."""


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


def symmetric(total: Tensor) -> Tensor:
    """Return the complete symmetric matrices (…, D, D) for lower triangles that `add_outer` has filled."""
    lower = total.tril()
    return lower + lower.tril(-1).mT


def dense_limit(memory: int, limit: int | None = None) -> int:
    """Return the largest side of a matrix for the dense eigensolver: two copies fit into the memory, at least 256.

    Args:
        memory: Memory budget in bytes.
        limit: Limit in place of the default `DENSE_LIMIT`.
    """
    return min(DENSE_LIMIT if limit is None else limit, max(LEAST_LIMIT, math.isqrt(memory // 16)))


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
        self.counts = _with_rows(self.counts, classes)
        self.means = _with_rows(self.means, classes)
        self.squares = _with_rows(self.squares, classes)


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


class UnitMoments:
    """Unit rows ẑ by class, stored as rows, as Σ ẑẑᵀ of each class, or only as the total Σ ẑẑᵀ.

    Args:
        features: Number of features D.
        classes: Number of classes C, or None if unknown.
        memory: Memory budget in bytes.
        device: Device of the sums.
        dtype: Precision of products of rows; rows and sums are float64.

    Attributes:
        kind: "rows" up to min(D·min(C, D), dense limit) rows, then "classes" if C·D² float64 numbers fit into the
            memory, else "total".
        counts: Number of rows with a direction in each class, (C,).
        left_out: Number of rows without a direction.
        rows: Blocks of unit rows, if `kind` is "rows".
        second: Lower triangles of the sums, (C, D, D), or (1, D, D) if `kind` is "total".
        rounding: Rounding of the trace of the sums by products in single precision.
        sample: Unit rows, labels and weights of a sample of which spectra are functions, or None.
    """

    def __init__(
        self,
        features: int,
        classes: int | None,
        memory: int,
        device: torch.device,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.kind = "rows"
        self.counts = torch.zeros(classes or 0, dtype=torch.int64, device=device)
        self.left_out = 0
        self.rows: list[Grouped] = []
        self.second = torch.zeros(0, features, features, dtype=torch.float64, device=device)
        self._features = features
        self._classes = classes
        self._memory = memory
        self._dtype = dtype
        self.rounding = 0.0
        self.sample: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def sizes(self) -> Tensor:
        """Return the number of rows with a direction in each class, (C,), float64; with gradient after `along`."""
        counts = self.counts.double()
        if self.sample is None:
            return counts
        _, labels, weights = self.sample
        return counts.index_add(0, labels, weights - weights.detach())

    @property
    def epsilon(self) -> float:
        """Return the relative precision of the sums, which in single precision is that of the centred products."""
        return max(EPSILON, self.rounding / max(1, int(self.counts.sum())))

    def along(self, sample: "Sample") -> "UnitMoments":
        """Return the moments with a sample of rows, along whose weights spectra have gradients."""
        moved = copy.copy(self)
        rows, directed = directions(sample.features)
        weights = sample.weights
        if rows.requires_grad:
            # All rows move with their mean: those of the sample stand for all others.
            weights = weights + sample.design.shares.to(weights) * sample.design.samples
        moved.sample = (rows, sample.labels[directed], weights[directed])
        return moved

    def update(self, block: Grouped) -> None:
        """Add a block of rows; rows of zero length are counted and left out."""
        for piece in block.split():
            unit, directed = directions(piece.rows.to(torch.float64))
            self.left_out += len(directed) - len(unit)
            complete = len(unit) == len(directed)
            labels = piece.labels if complete else piece.labels[piece.each()[directed]]
            self._add(Grouped(unit, labels, piece.sizes) if complete else group(unit, labels))
            self._settle()

    def merge(self, other: "UnitMoments") -> None:
        """Add the rows of another object; the result has the coarser kind of both."""
        self.left_out += other.left_out
        self.rounding += other.rounding
        device = self.counts.device
        if other.kind == "rows":
            for block in list(other.rows):
                self._add(Grouped(block.rows.to(device), block.labels.to(device), block.sizes.to(device)))
        else:
            self._become("total" if "total" in (self.kind, other.kind) else "classes")
            second = other.second.to(device)
            self._grow(len(other.counts))
            self.counts[: len(other.counts)] += other.counts.to(device)
            if self.kind == "total":
                self.second += second.sum(dim=0)
            else:
                self.second[: len(second)] += second
        self._settle()

    def all_rows(self) -> Grouped:
        """Return all unit rows sorted by label, if `kind` is "rows"."""
        if len(self.rows) > 1:
            rows = torch.cat([block.rows for block in self.rows])
            self.rows = [group(rows, torch.cat([block.labels[block.each()] for block in self.rows]))]
        return self.rows[0]

    def rows_where(self, mask: Tensor) -> Grouped:
        """Return the unit rows of the classes that a mask (C,) selects, if `kind` is "rows"."""
        rows = self.all_rows()
        return rows.where(mask[rows.labels][rows.each()])

    def of_classes(self, labels: Tensor) -> Tensor:
        """Return Σ ẑẑᵀ of some classes, (k, D, D), if `kind` is "rows" or "classes"."""
        if self.kind == "rows":
            rows = self.all_rows()
            by_label = dict(zip(rows.labels.tolist(), rows.by_class(), strict=True))
            return torch.stack([by_label[label].T @ by_label[label] for label in labels.tolist()])
        return symmetric(self.second[labels])

    def total(self) -> Tensor:
        """Return Σ ẑẑᵀ of all rows, (D, D), if `kind` is "classes" or "total"."""
        return symmetric(self.second.sum(dim=0))

    def needed(self) -> int:
        """Return the number of bytes of one second moment per class."""
        return 8 * self._features**2 * (self._classes or int((self.counts > 0).sum()))

    def _add(self, block: Grouped) -> None:
        if not len(block.rows):
            return
        self._grow(int(block.labels[-1]) + 1)
        self.counts[block.labels] += block.sizes
        if self.kind == "rows":
            self.rows.append(block)
        elif self.kind == "total":
            self._add_outer(self.second[0], block.rows)
        else:
            for label, rows in zip(block.labels.tolist(), block.by_class(), strict=True):
                self._add_outer(self.second[label], rows)

    def _add_outer(self, total: Tensor, rows: Tensor) -> None:
        """Add rowsᵀ rows, as the products of centred rows and of their mean, so that similar rows lose no digit."""
        if len(rows) < FEW_ROWS:
            add_outer(total, rows)
            return
        mean = rows.mean(dim=0)
        centred = rows - mean
        add_outer(total, centred.to(self._dtype))
        add_outer(total, mean[None] * len(rows) ** 0.5)
        if self._dtype != torch.float64:
            self.rounding += torch.finfo(self._dtype).eps * float(centred.square().sum())

    def _settle(self) -> None:
        """Change to a coarser kind if the present one takes too much memory."""
        if self.kind == "rows":
            features, present = self._features, self._classes or int((self.counts > 0).sum())
            if int(self.counts.sum()) > min(features * min(present, features), dense_limit(self._memory)):
                self._become("classes")
        if self.kind == "classes" and self.needed() > self._memory:
            self._become("total")

    def _become(self, kind: str) -> None:
        if kind == self.kind:
            return
        if kind == "classes" and self.needed() > self._memory:
            kind = "total"
        if self.kind == "rows":
            blocks, self.rows, self.kind = self.rows, [], kind
            shape = (1 if kind == "total" else len(self.counts), self._features, self._features)
            self.second = self.second.new_zeros(shape)
            self.counts.zero_()
            for block in blocks:
                self._add(block)
            return
        self.kind, self.second = kind, self.second.sum(dim=0, keepdim=True)

    def _grow(self, classes: int) -> None:
        self.counts = _with_rows(self.counts, classes)
        if self.kind == "classes":
            self.second = _with_rows(self.second, len(self.counts))


def _with_rows(values: Tensor, count: int) -> Tensor:
    """Return values with zero rows appended up to a number of rows."""
    missing = count - len(values)
    return torch.cat([values, values.new_zeros(missing, *values.shape[1:])]) if missing > 0 else values

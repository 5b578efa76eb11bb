"""Quantities of all pairs of C rows, from tiles of their cosines; each pair is visited once for all quantities.

No C × C matrix is stored. Tiles on the diagonal contain both (c, c') and (c', c); other tiles contain one of them,
which counts twice, so that a sum over the tiles is a sum over ordered pairs.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ckpt_probe.metrics.rows import EPSILON

TILE = 512
"""Rows and columns of a tile, whose 2 MB of cosines fit into the processor's cache."""

CLOSE = 1e-2
"""Squared distances below this share of the squared lengths lose digits if computed as |a|² + |b|² − 2 a·b."""

FEW_PAIRS = 2**26
"""C²·D up to which all distances are computed from differences, in a fraction of a second."""

DIFFERENCES_AT_ONCE = 2**21


@dataclass(frozen=True)
class Tile:
    """Cosines of some pairs of rows.

    Attributes:
        rows: Slice of the first rows.
        columns: Slice of the second rows.
        cosines: Cosines, (r, s).
        off_diagonal: Mask of the entries that are pairs, (r, s); None if all are.
    """

    rows: slice
    columns: slice
    cosines: Tensor
    off_diagonal: Tensor | None

    def pairs(self, values: Tensor) -> Tensor:
        """Return the values, of (r, s), that belong to a pair."""
        return values if self.off_diagonal is None else values[self.off_diagonal]

    def sum(self, values: Tensor) -> float | Tensor:
        """Return the sum of values (r, s) over ordered pairs."""
        total = self.pairs(values).sum() * (2 if self.off_diagonal is None else 1)
        return total if total.requires_grad else float(total)

    def only_pairs(self, values: Tensor) -> Tensor:
        """Return values (r, s) with 1 on the diagonal where they have a gradient, which would be NaN for a zero."""
        if self.off_diagonal is None or not values.requires_grad:
            return values
        return values.where(self.off_diagonal, 1.0)

    def where(self, marked: Tensor) -> tuple[Tensor, Tensor]:
        """Return the positions of the pairs that a mask (r, s) selects."""
        if self.off_diagonal is not None:
            marked = marked & self.off_diagonal
        first, second = marked.nonzero(as_tuple=True)
        return first, second


class Quantity(Protocol):
    """A quantity of pairs that is accumulated tile by tile."""

    def add(self, tile: Tile) -> None:
        """Add the pairs of a tile."""
        ...


def visit(unit: Tensor, quantities: Sequence[Quantity]) -> None:
    """Add every tile of the cosines of unit rows (C, D) to all quantities; cosines of a row of zeros are 0."""
    for tile in _tiles(unit):
        for quantity in quantities:
            quantity.add(tile)


class Equiangular:
    """Mean over pairs of |cos(row_c, row_c') + 1/(C−1)|.

    Args:
        unit: Unit rows, (C, D).
        errors: Standard errors σ of the cosines, (C, C), or None. The derivative of |x| is then erf(x/(√2 σ)), that of
            the mean of |x| over normal numbers around x: a sign that is not certain has less effect.
    """

    def __init__(self, unit: Tensor, errors: Tensor | None = None) -> None:
        self._classes = len(unit)
        self._errors = errors
        self._complete = bool(unit.any(dim=1).all())
        self._total: float | Tensor = 0.0

    def add(self, tile: Tile) -> None:
        """Add the pairs of a tile."""
        excess = tile.cosines + 1 / (self._classes - 1)
        if self._errors is None:
            self._total += tile.sum(excess.abs_())
            return
        now, errors = excess.detach(), self._errors[tile.rows, tile.columns]
        sign = torch.erf(now / (math.sqrt(2) * errors.clamp(min=EPSILON)))
        self._total += tile.sum(now.abs() + sign * (excess - now))

    @property
    def value(self) -> float | Tensor | None:
        """Return the mean, or None if a row has zero length."""
        return self._total / _ordered_pairs(self._classes) if self._complete else None


class Cdnv:
    """Mean over pairs of (v_c + v_c') / (2 ‖μ_c − μ_c'‖²), from tiles of the centred means.

    Args:
        variances: v_c, (C,).
        means: μ_c, (C, D).
        lengths: Lengths of the centred means, (C,).
        sizes: Rounding of each mean, (C,); means that are not farther apart than the sum of theirs coincide.
        exponent: Power of the squared distance.
    """

    def __init__(
        self, variances: Tensor, means: Tensor, lengths: Tensor, sizes: Tensor, *, exponent: float = 1.0
    ) -> None:
        self._variances = variances
        self._means = means
        self._lengths = lengths
        self._sizes = sizes
        self._exponent = exponent
        self._few = len(means) ** 2 * means.shape[1] <= FEW_PAIRS and len(means) <= TILE
        self._apart = True
        self._total: float | Tensor = 0.0

    def add(self, tile: Tile) -> None:
        """Add the pairs of a tile."""
        squares = tile.only_pairs(self._squared_distances(tile))
        limits = (self._sizes[tile.rows, None] + self._sizes[tile.columns]).square_()
        self._apart = self._apart and bool(tile.pairs(squares > limits).all())
        sums = self._variances[tile.rows, None] + self._variances[tile.columns]
        self._total += tile.sum(sums / (2 * (squares if self._exponent == 1 else squares**self._exponent)))

    @property
    def value(self) -> float | Tensor | None:
        """Return the mean, or None if two class means coincide."""
        return self._total / _ordered_pairs(len(self._means)) if self._apart else None

    def _squared_distances(self, tile: Tile) -> Tensor:
        rows, columns = self._means[tile.rows], self._means[tile.columns]
        if self._few:
            return torch.cdist(rows, columns, compute_mode="donot_use_mm_for_euclid_dist").square()
        first, second = self._lengths[tile.rows, None], self._lengths[tile.columns]
        sizes = first.square() + second.square()
        squares = (tile.cosines * first).mul_(second).mul_(-2).add_(sizes)
        # Means that are close to each other are subtracted before squaring.
        close = tile.where(squares < CLOSE * sizes)
        squares[close] = _squared_differences(rows, columns, close)
        return squares


class Uniformity:
    """Generalised NC2: mean and standard deviation over pairs of log(1/‖u_c − u_c'‖).

    This is the hyperspherical energy of Liu et al. 2023 (arXiv 2303.06484), which is smallest for evenly spread rows,
    also if C > D + 1, so that no simplex exists.

    Args:
        unit: Rows u_c of unit length, (C, D).
        sizes: Rounding of each row, (C,), beside that of the scaling. Rows that are not farther apart than the sum of
            theirs have the same direction.
    """

    def __init__(self, unit: Tensor, sizes: Tensor) -> None:
        self._unit = unit
        self._sizes = sizes + unit.shape[1] * EPSILON
        self._pairs = _ordered_pairs(len(unit))
        # Sums are relative to the simplex ETF, so that a spread of zero is not lost in rounding.
        self._etf = len(unit) / (len(unit) - 1)
        self._defined = bool(unit.any(dim=1).all())
        self._sum: float | Tensor = 0.0
        self._squares: float | Tensor = 0.0

    def add(self, tile: Tile) -> None:
        """Add the pairs of a tile."""
        apart = 1 - tile.cosines
        close = tile.where(apart < CLOSE / 2)
        apart[close] = _squared_differences(self._unit[tile.rows], self._unit[tile.columns], close) / 2
        apart = tile.only_pairs(apart)
        limits = (self._sizes[tile.rows, None] + self._sizes[tile.columns]).square_() / 2
        self._defined = self._defined and bool(tile.pairs(apart > limits).all())
        excess = apart.div_(self._etf).log_().mul_(-0.5)
        self._sum += tile.sum(excess)
        self._squares += tile.sum(excess.square())

    @property
    def mean(self) -> float | Tensor | None:
        """Return the mean, or None if a row has zero length, or two have the same direction."""
        return self._sum / self._pairs - math.log(2 * self._etf) / 2 if self._defined else None

    @property
    def spread(self) -> float | Tensor | None:
        """Return the standard deviation, or None as `mean`."""
        if not self._defined:
            return None
        variance = self._squares / self._pairs - (self._sum / self._pairs) ** 2
        return variance.clamp(min=0).sqrt() if isinstance(variance, Tensor) else math.sqrt(max(0.0, variance))


def _tiles(unit: Tensor) -> Iterator[Tile]:
    for start in range(0, len(unit), TILE):
        rows = slice(start, min(start + TILE, len(unit)))
        for other in range(start, len(unit), TILE):
            columns = slice(other, min(other + TILE, len(unit)))
            cosines, pairs = unit[rows] @ unit[columns].T, None
            if rows == columns:
                pairs = torch.ones_like(cosines, dtype=torch.bool).fill_diagonal_(False)
            yield Tile(rows, columns, cosines, pairs)


def _squared_differences(rows: Tensor, columns: Tensor, pairs: Iterable[Tensor]) -> Tensor:
    first, second = pairs
    at_once = max(1, DIFFERENCES_AT_ONCE // rows.shape[1])
    parts = zip(first.split(at_once), second.split(at_once), strict=True)
    return torch.cat([(rows[i] - columns[j]).square().sum(dim=1) for i, j in parts])


def _ordered_pairs(classes: int) -> int:
    return classes * (classes - 1)

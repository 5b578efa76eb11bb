"""Similarity of two representations of the same rows: linear CKA by unbiased HSIC, at once or block by block.

HSIC₁ of linear kernels K = X Xᵀ and L = Y Yᵀ of n rows, with K̃ and L̃ their off-diagonal parts (Song et al. 2012,
equation 5), is (tr(K̃ L̃) + 1ᵀK̃1 · 1ᵀL̃1 / ((n−1)(n−2)) − 2 · 1ᵀK̃L̃1 / (n−2)) / (n (n−3)). Its expectation does not depend
on n, so that CKA of independent rows is near 0, not near 1, also if n is small compared with the width. It does not
depend on offsets: about the mean, with k_i = |x_i|² and l_i = |y_i|², 1ᵀK̃1 = −Σ k, 1ᵀK̃L̃1 = Σ k l and
tr(K̃ L̃) = ‖Xᵀ Y‖_F² − Σ k l, so that nothing n × n is needed.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from ckpt_probe.errors import DataError
from ckpt_probe.metrics.entropy import Directed, as_given, hdr, joint_entropies, mir, mutual_information
from ckpt_probe.metrics.rows import EPSILON, Array, centred, largest, near_one, power_of_two, to_rows

__all__ = ["CKA", "cka", "cka_between", "cka_matrix", "hdr", "hsic", "mir", "mir_between", "mutual_information"]

LEAST_ROWS = 4
GRAM_BYTES = 2**28
"""Bytes of blocks of Gram matrices when many representations are compared."""
UNDEFINED = (
    "cka: undefined, since one representation does not vary over the rows, varies in few of them only, or has "
    "orthogonal rows; or too few were given"
)
TINY = 5e-324
SIDES = "the first ones have", "the others"
TOO_FEW = f"cka: unbiased HSIC needs at least {LEAST_ROWS} rows"


def cka(X: Array, Y: Array) -> float | Tensor:
    """Compute linear CKA of two representations of the same rows, by unbiased HSIC₁.

    HSIC(X, Y) / √(HSIC(X, X) · HSIC(Y, Y)); Kornblith et al. 2019, Nguyen et al. 2021. 1 if they are equal up to
    rotation, scale and offset; near 0, possibly negative, if they are independent.

    Args:
        X: Rows of the first representation, (n, d), numpy or torch, n ≥ 4.
        Y: Rows of the second representation, (n, e), in the same order.

    Returns:
        The similarity: a float for numpy, a 0-d tensor with gradient for torch.

    Raises:
        DataError: If the numbers of rows differ, there are fewer than 4, values are not finite, or one representation
            does not vary over the rows.
    """
    rows = (centred(near_one(rows)) for rows in _same_rows(X, Y))
    return as_given(_ratio(*(_hsic(first, second) for first, second in _pairings(*rows))), X, Y)


def cka_matrix(layers: Sequence[Array]) -> Tensor:
    """Return CKA of every two of L representations of the same rows, (L, L) float64; errors as `cka`."""
    matrix = cka_between(layers)
    if bool(matrix.isnan().any()):
        raise DataError(UNDEFINED)
    return matrix


def cka_between(first: Sequence[Array], second: Sequence[Array] | None = None) -> Tensor:
    """Return CKA of each of L representations with each of M others of the same rows, (L, M) float64.

    Args:
        first: Representations, (n, d) each.
        second: Other representations, (n, e) each; the first ones if None.

    Returns:
        The matrix; NaN where a representation does not vary over the rows.

    Raises:
        DataError: As `cka`, except for representations that do not vary.
    """
    left = [centred(near_one(rows)) for rows in _all_rows(first)]
    right = left if second is None else [centred(near_one(rows)) for rows in _all_rows(second)]
    if not (left and right):
        return torch.empty(len(left), len(right), dtype=torch.float64)
    _require_rows(left[0], right[0], SIDES)
    shared = _hsic_between(left, right)
    if second is None:
        roots = [_roots(shared.diagonal())] * 2
    else:
        roots = [_roots(torch.stack([_hsic(rows, rows) for rows in side])) for side in (left, right)]
    matrix = shared / (roots[0][:, None] * roots[1][None, :])
    if second is None:
        matrix.diagonal().copy_(roots[0] / roots[0])
    return matrix


def mir_between(first: Sequence[Array], second: Sequence[Array] | None = None) -> Tensor:
    """Return MIR of each of L representations with each of M others of the same rows, as `cka_between`."""
    left = _all_rows(first, 1)
    sides = [left, left if second is None else _all_rows(second, 1)]
    if all(sides):
        _require_rows(sides[0][0], sides[1][0], SIDES, 1)
    # If every row of a layer has a direction, its entropy does not depend on the other layer.
    directed = [[_all_directed(rows) for rows in side] for side in sides]

    def pair(a: int, b: int) -> float:
        left, right = directed[0][a], directed[1][b]
        try:
            if left is None or right is None:
                ratio = joint_entropies(sides[0][a], sides[1][b]).mir
            else:
                ratio = left.beside(right).mir
        except DataError:
            # No row has a direction in both.
            ratio = None
        return math.nan if ratio is None else float(ratio)

    return _matrix(len(sides[0]), len(sides[1]), pair, symmetric=second is None)


def _all_directed(rows: Tensor) -> Directed | None:
    """Return unit rows and their entropy; None if a row has no direction."""
    return Directed.of(rows) if bool((rows.abs().amax(dim=1) > 0).all()) else None


def hsic(X: Array, Y: Array) -> float | Tensor:
    """Compute unbiased HSIC₁ of linear kernels of X (n, d) and Y (n, e), n ≥ 4; may be negative; errors as `cka`."""
    value = _hsic(*map(centred, _same_rows(X, Y)))
    if not bool(torch.isfinite(value)):
        raise DataError("hsic: the rows are so large that products of them overflow; divide them by a power of two")
    return as_given(value, X, Y)


class CKA:
    """Accumulates linear CKA of rows block by block: `update(X, Y)`, `merge(other)`, `compute()`.

    Args:
        minibatches: If False, the result is exactly that of all rows at once for any blocks, from d·e + d² + e² sums.
            If True, HSIC₁ is averaged over the blocks (Nguyen et al. 2021), which must be random and of equal size;
            this stores three numbers and estimates the same value.
    """

    def __init__(self, *, minibatches: bool = False) -> None:
        self.rows = 0
        self._minibatches = minibatches
        self._sums: list[_Sums] = []
        self._averaged = torch.zeros(3, dtype=torch.float64)
        self._blocks = 0
        # Powers of two that X and Y are divided by: CKA does not depend on scale.
        self._units = power_of_two(TINY), power_of_two(TINY)

    def update(self, X: Array, Y: Array) -> None:
        """Add a block of the same rows, X (n, d) and Y (n, e); errors as `cka`."""
        first, second = (rows.detach().cpu() for rows in _same_rows(X, Y, LEAST_ROWS if self._minibatches else 1))
        self._enlarge((power_of_two(largest(first) or TINY), power_of_two(largest(second) or TINY)))
        first, second = first / self._units[0], second / self._units[1]
        if self._minibatches:
            self._averaged += torch.stack([_hsic(a, b) for a, b in _pairings(centred(first), centred(second))])
            self._blocks += 1
        else:
            self._add([_Sums.of(a, b) for a, b in _pairings(first, second)])
        self.rows += len(first)

    def merge(self, other: "CKA") -> None:
        """Add the rows of another object; raise DataError if only one of them averages over minibatches."""
        if self._minibatches != other._minibatches:
            raise DataError("cka: an average over minibatches cannot be merged with sums over all rows")
        other = copy(other)
        other._enlarge(self._units)
        self._enlarge(other._units)
        self._averaged, self._blocks = self._averaged + other._averaged, self._blocks + other._blocks
        self._add(other._sums)
        self.rows += other.rows

    def compute(self) -> float:
        """Return CKA of all rows; errors as `cka`."""
        if self.rows < LEAST_ROWS:
            raise DataError(f"{TOO_FEW}, found {self.rows}")
        values = self._averaged / self._blocks if self._minibatches else [sums.hsic() for sums in self._sums]
        return float(_ratio(*values))

    def _enlarge(self, units: tuple[float, float]) -> None:
        """Divide rows by these powers of two if they are larger than those so far."""
        x, y = (min(old / new, 1.0) for old, new in zip(self._units, units, strict=True))
        if (x, y) == (1, 1):
            return
        factors = (x, y), (x, x), (y, y)
        self._units = max(self._units[0], units[0]), max(self._units[1], units[1])
        self._sums = [sums.times(*both) for sums, both in zip(self._sums, factors, strict=False)]
        self._averaged = self._averaged * torch.tensor([(a * b) ** 2 for a, b in factors], dtype=torch.float64)

    def _add(self, new: "Sequence[_Sums]") -> None:
        if not (self._sums and new):
            self._sums = self._sums or list(new)
            return
        widths = [tuple(sums[0].products.shape) for sums in (self._sums, new)]
        if widths[0] != widths[1]:
            raise DataError(f"cka: X and Y have {widths[1]} columns, earlier blocks had {widths[0]}")
        self._sums = [first.plus(second) for first, second in zip(self._sums, new, strict=True)]


@dataclass(frozen=True)
class _Sums:
    """Sums over rows about their own mean, x_i (d,) and y_i (e,), with k_i = |x_i|² and l_i = |y_i|².

    count n; means of x and y; products Σ x yᵀ (d, e); sizes Σ k and Σ l; both Σ k l; crossed Σ l x and Σ k y.
    """

    count: int
    means: tuple[Tensor, Tensor]
    products: Tensor
    sizes: tuple[Tensor, Tensor]
    both: Tensor
    crossed: tuple[Tensor, Tensor]

    @staticmethod
    def of(X: Tensor, Y: Tensor) -> "_Sums":
        means = X.mean(dim=0), Y.mean(dim=0)
        X, Y = centred(X), centred(Y)
        k, m = X.square().sum(dim=1), Y.square().sum(dim=1)
        return _Sums(len(X), means, X.T @ Y, (k.sum(), m.sum()), k @ m, (m @ X, k @ Y))

    def times(self, x: float, y: float) -> "_Sums":
        """Return the sums of all x_i times a power of two, and all y_i times another."""
        return _Sums(
            self.count,
            (self.means[0] * x, self.means[1] * y),
            self.products * x * y,
            (self.sizes[0] * x**2, self.sizes[1] * y**2),
            self.both * (x * y) ** 2,
            (self.crossed[0] * x * y**2, self.crossed[1] * x**2 * y),
        )

    def about(self, means: tuple[Tensor, Tensor], shifts: tuple[Tensor, Tensor]) -> "_Sums":
        """Return the sums about other means, at these shifts from the present ones.

        Only sums about the rows' own mean have a `plus` and an `hsic`.
        """
        n, (s, t) = self.count, shifts
        (k, m), (mx, ky) = self.sizes, self.crossed
        ss, tt, across = s @ s, t @ t, self.products @ t
        both = self.both + 2 * (ky @ t + mx @ s) + 4 * s @ across + tt * k + ss * m + n * ss * tt
        crossed = mx + 2 * across + s * (m + n * tt), ky + 2 * (s @ self.products) + t * (k + n * ss)
        return _Sums(n, means, self.products + n * s.outer(t), (k + n * ss, m + n * tt), both, crossed)

    def plus(self, other: "_Sums") -> "_Sums":
        """Return the sums over the rows of both."""
        count = self.count + other.count
        share = other.count / count
        x, y = (_apart(*both, count) for both in zip(self.means, other.means, strict=True))
        means = self.means[0] + x * share, self.means[1] + y * share
        a = self.about(means, (-x * share, -y * share))
        b = other.about(means, (x * (1 - share), y * (1 - share)))
        return _Sums(
            count,
            means,
            a.products + b.products,
            (a.sizes[0] + b.sizes[0], a.sizes[1] + b.sizes[1]),
            a.both + b.both,
            (a.crossed[0] + b.crossed[0], a.crossed[1] + b.crossed[1]),
        )

    def hsic(self) -> Tensor:
        return _unbiased(self.count, self.products.square().sum(), *self.sizes, self.both)


def _all_rows(layers: Sequence[Array], least: int = LEAST_ROWS) -> list[Tensor]:
    rows = [to_rows(layer, f"layer {number}").detach().cpu() for number, layer in enumerate(layers)]
    for number, layer in enumerate(rows):
        _require_rows(rows[0], layer, ("layer 0 has", f"layer {number} has"), least)
    return rows


def _matrix(count: int, others: int, pair: Callable[[int, int], float], *, symmetric: bool) -> Tensor:
    matrix = torch.empty(count, others, dtype=torch.float64)
    for a in range(count):
        for b in range(a + 1 if symmetric else others):
            matrix[a, b] = pair(a, b)
            if symmetric:
                matrix[b, a] = matrix[a, b]
    return matrix


def _unbiased(n: int, product: Tensor, k: Tensor, m: Tensor, both: Tensor) -> Tensor:
    """Return HSIC₁ from ‖Xᵀ Y‖_F², Σ k, Σ l and Σ k l about the mean; 0 where it is the rounding of these."""
    added, removed = product + k * m / ((n - 1) * (n - 2)), both + 2 * both / (n - 2)
    total = added - removed
    rounding = total.detach().abs() <= n * EPSILON * (added + removed)
    # A product with 0 leaves an overflow visible, as NaN.
    return torch.where(rounding, total * 0, total) / (n * (n - 3))


def _hsic(X: Tensor, Y: Tensor) -> Tensor:
    """Return HSIC₁ of centred rows (n, d) and (n, e)."""
    k, m = X.square().sum(dim=1), Y.square().sum(dim=1)
    few = len(X) ** 2 < X.shape[1] * Y.shape[1]
    product = ((X @ X.T) * (Y @ Y.T)).sum() if few else (X.T @ Y).square().sum()
    return _unbiased(len(X), product, k.sum(), m.sum(), k @ m)


def _hsic_between(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Return HSIC₁ of each of the centred rows (n, d) with each of the others, (L, M)."""
    sizes = [torch.stack([rows.square().sum(dim=1) for rows in side]) for side in (first, second)]
    k, m = sizes[0].sum(dim=1)[:, None], sizes[1].sum(dim=1)[None, :]
    return _unbiased(len(first[0]), _squared_products(first, second), k, m, sizes[0] @ sizes[1].T)


def _squared_products(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Return ‖Xᵀ Y‖_F² of every pair, (L, M), by one product each, or by Gram matrices if that is less work."""
    n = len(first[0])
    widths = [sum(rows.shape[1] for rows in side) for side in (first, second)]
    same = first is second
    by_pairs = n * widths[0] * widths[1] / (2 if same else 1)
    by_grams = n * n * (widths[0] + (0 if same else widths[1]) + len(first) * len(second))
    if by_grams < by_pairs:
        return _by_grams(first, second)
    return _matrix(len(first), len(second), lambda a, b: float((first[a].T @ second[b]).square().sum()), symmetric=same)


def _by_grams(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Return ⟨X Xᵀ, Y Yᵀ⟩ of every pair, from some rows of all Gram matrices at a time."""
    n = len(first[0])
    products = torch.zeros(len(first), len(second), dtype=torch.float64)
    block = max(1, GRAM_BYTES // (8 * n * (len(first) + len(second))))
    for start in range(0, n, block):
        part = slice(start, start + block)
        left = torch.stack([(rows[part] @ rows.T).flatten() for rows in first])
        right = left if first is second else torch.stack([(rows[part] @ rows.T).flatten() for rows in second])
        products += left @ right.T
    return products


def _roots(values: Tensor) -> Tensor:
    """Return √HSIC(X, X); NaN if X does not vary over the rows, or there are too few of them."""
    return torch.where(values > 0, values, math.nan).sqrt()


def _ratio(shared: Tensor, first: Tensor, second: Tensor) -> Tensor:
    if not (bool(first > 0) and bool(second > 0)):
        raise DataError(UNDEFINED)
    return shared / (first.sqrt() * second.sqrt())


def _apart(mean: Tensor, other: Tensor, count: int) -> Tensor:
    """Return other − mean (d,), entries zero that are not larger than the rounding of means of `count` rows."""
    apart = other - mean
    return torch.where(apart.abs() > count * EPSILON * torch.maximum(mean.abs(), other.abs()), apart, 0.0)


def _pairings(X: Tensor, Y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    yield X, Y
    yield X, X
    yield Y, Y


def _same_rows(X: Array, Y: Array, least: int = LEAST_ROWS) -> tuple[Tensor, Tensor]:
    first, second = to_rows(X, "X"), to_rows(Y, "Y")
    _require_rows(first, second, ("X has", "Y has"), least)
    return first, second


def _require_rows(first: Tensor, second: Tensor, names: tuple[str, str], least: int = LEAST_ROWS) -> None:
    if len(first) != len(second):
        numbers = f"{names[0]} {len(first)} rows and {names[1]} {len(second)}"
        raise DataError(f"{numbers}: they must describe the same rows")
    if len(first) < least:
        raise DataError(f"{TOO_FEW}, found {len(first)}")

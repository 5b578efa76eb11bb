"""Matrix entropy, the entropy of the eigenvalues of a Gram matrix in nats; mutual information, MIR and HDR."""

import math
from dataclasses import dataclass
from functools import cached_property
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from ckpt_probe.errors import DataError
from ckpt_probe.metrics.rows import (
    EPSILON,
    Array,
    centred,
    directions,
    require_directions,
    second_moment,
    smaller_gram,
    spectrum,
    to_rows,
    unit_rows,
)

NEAR_ONE = 1e-2
"""Distance from 1 up to which a Rényi order would lose digits to the difference of its sum from 1."""

SIX_DIGITS, TWO_DIGITS = 1e6, 1e2
"""Multiples of its rounding that an entropy must exceed, so that a ratio with it as denominator has as many digits: in
float64, and for products of rows in single precision."""


def matrix_entropy(X: Array, *, alpha: float = 1.0, normalized: bool = False) -> float | Tensor:
    """Compute the matrix entropy of the Gram matrix K of the rows of X, between 0 and log n.

    −tr((K/n) log (K/n)), in nats; arXiv 2409.16767, definition 1.

    Args:
        X: Rows, (n, d); rows of zero length are left out.
        alpha: Order; another order than 1 computes the Rényi entropy (1/(1−α)) log tr((K/n)^α) (Giraldo and Príncipe
            2013).
        normalized: Whether to divide by log n.

    Returns:
        The entropy: a float for numpy, a 0-d tensor with gradient for torch.

    Raises:
        DataError: As `gram`, or if alpha is not positive and finite.
    """
    rows, _ = unit_rows(to_rows(X))
    n = rows.shape[0]
    entropy = entropy_of_gram(smaller_gram(rows), n=n, alpha=alpha)
    if normalized and n > 1:
        entropy = entropy / math.log(n)
    return as_given(entropy, X)


def effective_rank(X: Array) -> float | Tensor:
    """Compute the effective rank exp(matrix entropy) of rows (n, d), 1 … min(n, d) (Roy and Vetterli 2007)."""
    entropy = matrix_entropy(X)
    return torch.exp(entropy) if isinstance(entropy, Tensor) else math.exp(entropy)


def erank_difference(first: Array, rows: Array) -> float | Tensor:
    """Return the effective rank of `first` minus that of `rows`, each minus its mean.

    Wei et al. 2024, arXiv 2401.17139. Positive if training has concentrated the features. Entries that differ from
    the mean by rounding only are zero, so that a constant representation has no direction. Result and errors as
    `effective_rank`.

    Args:
        first: Features of the untrained (or first) checkpoint, (n, d).
        rows: Features of another one on the same inputs, (m, e).
    """
    before, after = (matrix_entropy(centred(to_rows(*named))) for named in ((first, "first"), (rows, "rows")))
    return as_given(torch.exp(before) - torch.exp(after), first, rows)  # pyright: ignore[reportArgumentType]


def mutual_information(X: Array, Y: Array) -> float | Tensor:
    """Compute the matrix mutual information of two representations of the same rows, in nats.

    MI = H(K_X) + H(K_Y) − H(K_X ⊙ K_Y); arXiv 2409.16767, definition 2. Rows with zero length in X or Y are left out.

    Args:
        X: Rows of the first representation, (n, d), numpy or torch.
        Y: Rows of the second representation, (n, e), in the same order.

    Returns:
        The information: a float for numpy, a 0-d tensor with gradient for torch.

    Raises:
        DataError: If the numbers of rows differ, a value is not finite, or more than half of the rows have zero length.
    """
    return as_given(joint_entropies(X, Y).mutual_information, X, Y)


def mir(X: Array, Y: Array) -> float | Tensor:
    """Compute the matrix mutual information ratio of two representations of the same rows.

    MIR = (H(K_X) + H(K_Y) − H(K_X ⊙ K_Y)) / min(H(K_X), H(K_Y)); arXiv 2409.16767, definition 3.

    Args:
        X: Rows of the first representation, (n, d), numpy or torch.
        Y: Rows of the second representation, (n, e), in the same order.

    Returns:
        The ratio: a float for numpy, a 0-d tensor with gradient for torch.

    Raises:
        DataError: As `mutual_information`, or if the smaller entropy is zero.
    """
    ratio = joint_entropies(X, Y).mir
    if ratio is None:
        raise DataError("mir: undefined, since one representation has entropy zero (all its rows share a direction)")
    return as_given(ratio, X, Y)


def hdr(X: Array, Y: Array) -> float | Tensor:
    """Compute the matrix entropy difference ratio of two representations of the same rows.

    HDR = |H(K_X) − H(K_Y)| / max(H(K_X), H(K_Y)); arXiv 2409.16767, definition 4.

    Args:
        X: Rows of the first representation, (n, d), numpy or torch.
        Y: Rows of the second representation, (n, e), in the same order.

    Returns:
        The ratio: a float for numpy, a 0-d tensor with gradient for torch.

    Raises:
        DataError: As `mutual_information`, or if both entropies are zero.
    """
    ratio = joint_entropies(X, Y).hdr
    if ratio is None:
        raise DataError("hdr: undefined, since both representations have entropy zero")
    return as_given(ratio, X, Y)


@dataclass(frozen=True)
class Entropies:
    """Entropies (nats) of two Gram matrices and of their elementwise product.

    Attributes:
        first: Of the first Gram matrix, a 0-d tensor.
        second: Of the second one.
        joint: Of their product.
        side: Side of the matrices whose eigenvalues these come from, the largest.
        epsilon: Relative precision of the products of rows.
    """

    first: Tensor
    second: Tensor
    joint: Tensor
    side: int
    epsilon: float = EPSILON

    @cached_property
    def mutual_information(self) -> Tensor:
        """Return H(K1) + H(K2) − H(K1 ⊙ K2), in nats; 0 if it is rounding."""
        shared = self.first + self.second - self.joint
        return torch.where(shared.detach().abs() > self.side * self.epsilon, shared, 0.0)

    @cached_property
    def mir(self) -> Tensor | None:
        """Return the mutual information over the smaller entropy; None if that is zero or too close to rounding."""
        smaller = torch.minimum(self.first, self.second)
        return self.mutual_information / smaller if smaller > self._least else None

    @cached_property
    def hdr(self) -> Tensor | None:
        """Return |H(K1) − H(K2)| over the larger entropy; None if that is zero or too close to rounding."""
        larger = torch.maximum(self.first, self.second)
        return (self.first - self.second).abs() / larger if larger > self._least else None

    @property
    def _least(self) -> float:
        """Return the entropy up to which a denominator is too close to rounding."""
        digits = SIX_DIGITS if self.epsilon == EPSILON else TWO_DIGITS
        return digits * self.side * self.epsilon


def joint_entropies(X: Array, Y: Array) -> Entropies:
    """Return the three entropies of mutual information, MIR and HDR of rows X (n, d) and Y (n, e)."""
    first, second = to_rows(X, "X"), to_rows(Y, "Y")
    if first.shape[0] != second.shape[0]:
        raise DataError(f"X has {first.shape[0]} rows and Y has {second.shape[0]}: they must describe the same rows")
    directed = (first.detach().abs().amax(dim=1) > 0) & (second.detach().abs().amax(dim=1) > 0)
    n = int(directed.sum())
    require_directions(first.shape[0] - n, first.shape[0], "X and Y")
    return Directed.of(first[directed]).beside(Directed.of(second[directed]))


@dataclass(frozen=True)
class Directed:
    """Unit rows and the entropy of their Gram matrix.

    Attributes:
        rows: Unit rows, (n, d).
        entropy: Entropy, a 0-d tensor.
    """

    rows: Tensor
    entropy: Tensor

    @staticmethod
    def of(rows: Tensor) -> "Directed":
        """Return unit rows and entropy of rows (n, d), all of which have a direction."""
        unit, _ = directions(rows)
        return Directed(unit, entropy_of_gram(smaller_gram(unit), n=len(unit)))

    def beside(self, other: "Directed") -> Entropies:
        """Return the three entropies of these rows and others of the same samples."""
        product = joint_gram(self.rows, other.rows)
        joint = entropy_of_gram(product, n=len(self.rows))
        return Entropies(self.entropy, other.entropy, joint, len(product))


def joint_gram(first: Tensor, second: Tensor) -> Tensor:
    """Return K1 ⊙ K2 of unit rows (n, d) and (n, e), or if smaller the (d·e, d·e) matrix with its eigenvalues.

    K1 ⊙ K2 is the Gram matrix of the rows x̂_i ⊗ ŷ_i.
    """
    n, d, e = first.shape[0], first.shape[1], second.shape[1]
    if n <= d * e:
        return (first @ first.T) * (second @ second.T)
    products = (first[:, :, None] * second[:, None, :]).reshape(n, d * e)
    return second_moment(products)


def entropy_of_gram(K: Tensor, *, n: int | None = None, alpha: float = 1.0) -> Tensor:
    """Return the matrix entropy of a Gram matrix, or of a matrix with its non-zero eigenvalues, in nats, 0-d.

    Args:
        K: Symmetric positive semi-definite matrix of trace n, (m, m).
        n: Number of rows; m if None.
        alpha: Order of the entropy.
    """
    K = K / (n or K.shape[0])
    if alpha == 2:
        # The sum of squared eigenvalues is that of squared entries.
        K = K / K.detach().trace()
        return _unless_rounding(-torch.log((K * K).sum()), len(K))
    return entropy_of_spectrum(spectrum(K), alpha=alpha)


def entropy_of_spectrum(eigenvalues: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Return the entropy (nats) of eigenvalues (…, k) of trace 1, (…,), zeros not counted; 0 where it is rounding.

    Raises:
        DataError: If alpha is not positive and finite.
    """
    require_order(alpha)
    # Their sum is 1 up to rounding, which must not appear in an entropy near 0.
    shares = eigenvalues / eigenvalues.detach().sum(dim=-1, keepdim=True)
    present = shares > 0
    # 1 log 1 is 0 as well, and unlike 0 log 0 has a gradient that can be masked.
    logs = shares.where(present, 1.0).log()
    if alpha == 1:
        entropy = -(shares * logs).sum(dim=-1)
    elif abs(alpha - 1) < NEAR_ONE:
        entropy = torch.log1p((shares * torch.expm1((alpha - 1) * logs)).sum(dim=-1)) / (1 - alpha)
    else:
        entropy = torch.logsumexp((alpha * logs).where(present, -torch.inf), dim=-1) / (1 - alpha)
    return _unless_rounding(entropy, eigenvalues.shape[-1])


def renyi_name(order: float) -> str:
    """Return the prefix of the names of a Rényi order in a record, such as renyi_2; it is unique for each order."""
    return f"renyi_{order:g}" if float(f"{order:g}") == order else f"renyi_{order!r}"


def _unless_rounding(entropy: Tensor, side: int) -> Tensor:
    return torch.where(entropy.detach() > side * EPSILON, entropy, 0.0)


def require_order(alpha: float, name: str = "alpha") -> None:
    """Raise DataError, which has the name of the argument, if an order of an entropy is not positive and finite."""
    if not isinstance(alpha, Real | Tensor) or not (alpha > 0 and math.isfinite(alpha)):
        raise DataError(f"{name}: the order of an entropy must be positive and finite, found {alpha}")


def as_given(value: Tensor, *inputs: Array) -> float | Tensor:
    """Return a value as a 0-d tensor if an input is a tensor, else as a float."""
    return value if any(isinstance(X, Tensor) for X in inputs) else float(np.float64(value.item()))

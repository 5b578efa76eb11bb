"""Matrix mutual information, MIR and HDR of two representations of the same rows."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ckpt_probe.errors import DataError
from ckpt_probe.metrics.entropy import as_given, entropy_of_gram
from ckpt_probe.metrics.rows import EPSILON, Array, directions, require_directions, second_moment, smaller_gram, to_rows

SIX_DIGITS, TWO_DIGITS = 1e6, 1e2
"""Multiples of its rounding that an entropy must exceed, so that a ratio with it as denominator has as many digits: in
float64, and for products of rows in single precision."""


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

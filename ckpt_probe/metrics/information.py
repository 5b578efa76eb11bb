"""What two representations of the same rows share: matrix mutual information, MIR and HDR."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ckpt_probe.errors import DataError
from ckpt_probe.metrics.entropy import as_given, entropy_of_gram
from ckpt_probe.metrics.gram import Array, directions, require_directions, second_moment, smaller_gram, to_rows
from ckpt_probe.metrics.rounding import rounding

SIX_DIGITS = 1e6
"""Times the rounding of an entropy that it has to be for a ratio over it to have as many digits."""


@dataclass(frozen=True)
class Entropies:
    """Entropies (nats) of two Gram matrices and of their elementwise product.

    Attributes:
        first: Of the first Gram matrix, a 0-d tensor.
        second: Of the second one.
        joint: Of their product.
        side: Side of the matrices whose eigenvalues these come from, the largest.
    """

    first: Tensor
    second: Tensor
    joint: Tensor
    side: int

    @property
    def mutual_information(self) -> Tensor:
        """H(K1) + H(K2) − H(K1 ⊙ K2), in nats; 0 where it is rounding."""
        shared = self.first + self.second - self.joint
        return torch.where(shared.detach().abs() > self._rounding, shared, 0.0)

    @property
    def mir(self) -> Tensor | None:
        """Mutual information over the smaller entropy; None where that is zero or too near to rounding."""
        smaller = torch.minimum(self.first, self.second)
        return self.mutual_information / smaller if smaller > SIX_DIGITS * self._rounding else None

    @property
    def hdr(self) -> Tensor | None:
        """|H(K1) − H(K2)| over the larger entropy; None where that is zero or too near to rounding."""
        larger = torch.maximum(self.first, self.second)
        return (self.first - self.second).abs() / larger if larger > SIX_DIGITS * self._rounding else None

    @property
    def _rounding(self) -> float:
        return rounding(self.side, 1.0)


def mutual_information(X: Array, Y: Array) -> float | Tensor:
    """Matrix mutual information of two representations of the same rows, in nats (arXiv 2409.16767, definition 2).

    X: (n, d), Y: (n, e). Rows where either has zero length are left out. Returns a float for numpy, a 0-d tensor with
    gradient for torch. Raises DataError where the numbers of rows differ, and as `gram` does.
    """
    return as_given(joint_entropies(X, Y).mutual_information, X, Y)


def mir(X: Array, Y: Array) -> float | Tensor:
    """Matrix mutual information ratio: mutual information over the smaller entropy (arXiv 2409.16767, definition 3).

    Shapes and result as `mutual_information`. Raises DataError where the smaller entropy is zero: it is undefined.
    """
    ratio = joint_entropies(X, Y).mir
    if ratio is None:
        raise DataError("mir: undefined, since one representation has entropy zero (all its rows share a direction)")
    return as_given(ratio, X, Y)


def hdr(X: Array, Y: Array) -> float | Tensor:
    """Matrix entropy difference ratio: |H(K1) − H(K2)| over the larger one (arXiv 2409.16767, definition 4).

    Shapes and result as `mutual_information`. Raises DataError where both entropies are zero: it is undefined.
    """
    ratio = joint_entropies(X, Y).hdr
    if ratio is None:
        raise DataError("hdr: undefined, since both representations have entropy zero")
    return as_given(ratio, X, Y)


def joint_entropies(X: Array, Y: Array) -> Entropies:
    """The three entropies behind mutual information, MIR and HDR of rows X (n, d) and Y (n, e)."""
    first, second = to_rows(X, "X"), to_rows(Y, "Y")
    if first.shape[0] != second.shape[0]:
        raise DataError(f"X has {first.shape[0]} rows and Y has {second.shape[0]}: they must describe the same rows")
    directed = (first.detach().abs().amax(dim=1) > 0) & (second.detach().abs().amax(dim=1) > 0)
    n = int(directed.sum())
    require_directions(first.shape[0] - n, first.shape[0], "X and Y")
    return Directed.of(first[directed]).beside(Directed.of(second[directed]))


@dataclass(frozen=True)
class Directed:
    """Unit rows (n, d), and the entropy of their Gram matrix, a 0-d tensor."""

    rows: Tensor
    entropy: Tensor

    @staticmethod
    def of(rows: Tensor) -> "Directed":
        """Those of rows (n, d) that all have a direction."""
        unit, _ = directions(rows)
        return Directed(unit, entropy_of_gram(smaller_gram(unit), n=len(unit)))

    def beside(self, other: "Directed") -> Entropies:
        """The three entropies of these rows and others of the same samples."""
        product = joint_gram(self.rows, other.rows)
        joint = entropy_of_gram(product, n=len(self.rows))
        return Entropies(self.entropy, other.entropy, joint, len(product))


def joint_gram(first: Tensor, second: Tensor) -> Tensor:
    """K1 ⊙ K2 of unit rows (n, d) and (n, e), or the (d·e, d·e) matrix with the same non-zero eigenvalues if smaller.

    It is the Gram matrix of the rows x̂_i ⊗ ŷ_i.
    """
    n, d, e = first.shape[0], first.shape[1], second.shape[1]
    if n <= d * e:
        return (first @ first.T) * (second @ second.T)
    products = (first[:, :, None] * second[:, None, :]).reshape(n, d * e)
    return second_moment(products)

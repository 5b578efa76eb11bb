"""Lanczos recurrences of many vectors at once, and the Gauss quadratures of quadratic forms that they give.

For a symmetric A ⪰ 0, xᵀ f(A) x = ∫ f dμ_x, whose m-point Gauss rule has the eigenvalues of the recurrence's
tridiagonal matrix as nodes (Golub and Meurant 2010, chapter 6).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 8
"""Vectors of a probe's basis that are kept together; fixed, so that no sum depends on where a recurrence was left."""

SINGLE = 2**17
"""Length from which earlier vectors are kept in float32: orthogonal to seven digits, and half as large."""

Operator = Callable[[Tensor], Tensor]
"""x (N, b) float64 → A x."""


@dataclass(frozen=True)
class Quadratures:
    """For each of b probes: nodes (b, m) and weights (b, m) that sum to 1, and its squared length, (b,)."""

    nodes: Tensor
    weights: Tensor
    lengths: Tensor

    def integrate(self, order: float) -> Tensor:
        """xᵀ f(A) x of each probe, (b,), f as in `spectral`."""
        return self.lengths * (self.weights * spectral(self.nodes, order)).sum(dim=1)


@dataclass(frozen=True)
class Eigenpairs:
    """Estimates of the largest eigenvalues (k,) of A, and of their eigenvectors, the columns of (N, k)."""

    values: Tensor
    vectors: Tensor

    def chance(self, probes: Tensor) -> Tensor:
        """(qᵀx)² − |q|² for each vector q and each probe x of independent signs, (k, b): zero on average."""
        squares = (self.vectors.T @ probes.to(self.vectors.dtype)).square()
        return (squares - self.vectors.square().sum(dim=0)[:, None]).to(probes.dtype)


@dataclass(frozen=True)
class Recurrence:
    """A Lanczos recurrence from each of b vectors: diagonals (b, m), offdiagonals (b, m − 1), squared lengths (b,)."""

    alphas: Tensor
    betas: Tensor
    lengths: Tensor

    @property
    def steps(self) -> int:
        """m."""
        return self.alphas.shape[1]

    @property
    def traces(self) -> Tensor:
        """xᵀ A x of each vector, (b,)."""
        return self.lengths * self.alphas[:, 0]

    def quadratures(self, steps: int | None = None) -> Quadratures:
        """What its first `steps` give, all where None."""
        nodes, vectors = self.solved(steps)
        return Quadratures(nodes, vectors[:, 0].square(), self.lengths)

    def solved(self, steps: int | None = None) -> tuple[Tensor, Tensor]:
        """Eigenvalues (b, m), rising, and eigenvectors (b, m, m) of the tridiagonal matrices of its first steps."""
        steps = steps or self.steps
        alphas, betas = self.alphas[:, :steps], self.betas[:, : steps - 1]
        nodes, vectors = torch.linalg.eigh(
            torch.diag_embed(alphas) + torch.diag_embed(betas, 1) + torch.diag_embed(betas, -1)
        )
        return nodes, vectors

    def part(self, vectors: slice) -> "Recurrence":
        """Those of some vectors alone."""
        return Recurrence(self.alphas[vectors], self.betas[vectors], self.lengths[vectors])


def spectral(values: Tensor, order: float) -> Tensor:
    """f of eigenvalues: −λ log λ for order 1, else λ^order."""
    values = values.clamp_min(0)
    return -torch.xlogy(values, values) if order == 1 else values.pow(order)


class Lanczos:
    """The Lanczos recurrence of A from each column of probes (N, b), which goes on from where it was left.

    Reorthogonalised against the whole basis, twice; a recurrence that ends early is padded with weight zero.
    """

    def __init__(self, operator: Operator, probes: Tensor) -> None:
        self._operator = operator
        self._lengths = probes.square().sum(dim=0)
        # (b, BLOCK, N) each, so that a product takes many earlier vectors of a probe.
        self._basis: list[Tensor] = []
        self._dtype = torch.float64 if len(probes) < SINGLE else torch.float32
        self._last = probes / self._lengths.sqrt()
        self._alphas: list[Tensor] = []
        self._betas: list[Tensor] = []
        self._alive = torch.ones_like(self._lengths, dtype=torch.bool)

    def after(self, steps: int) -> Recurrence:
        """The recurrence after `steps` steps, at most N."""
        while len(self._alphas) < min(steps, len(self._last)):
            if self._alphas:
                self._extend()
            place = len(self._alphas) % BLOCK
            if place == 0:
                self._basis.append(self._last.new_empty(self._last.shape[1], BLOCK, len(self._last), dtype=self._dtype))
            self._basis[-1][:, place] = self._last.T
            self._image = self._operator(self._last)
            self._alphas.append(torch.where(self._alive, (self._last * self._image).sum(dim=0), 0.0))
        return self._recurrence()

    def leading(self, count: int) -> Eigenpairs:
        """At most `count` of the largest eigenvalues, and their eigenvectors, as the first recurrence has them."""
        nodes, vectors = self._recurrence().part(slice(1)).solved()
        values, inside = nodes[0, -count:].flip(0), vectors[0, :, -count:].flip(1).to(self._dtype)
        found, start = inside.new_zeros(len(self._last), inside.shape[1]), 0
        for part in self._basis:
            rows = part[0, : len(inside) - start]
            found.addmm_(rows.T, inside[start : start + len(rows)])
            start += len(rows)
        return Eigenpairs(values, found)

    def _recurrence(self) -> Recurrence:
        alphas = torch.stack(self._alphas, dim=1)
        return Recurrence(alphas, torch.stack(self._betas, dim=1) if self._betas else alphas[:, :0], self._lengths)

    def keep(self, count: int) -> None:
        """Go on with the first so many vectors alone."""
        for place, part in enumerate(self._basis):
            self._basis[place] = part[:count].clone()
        self._last, self._image = self._last[:, :count].clone(), self._image[:, :count].clone()
        self._alphas, self._betas = ([part[:count] for part in held] for held in (self._alphas, self._betas))
        self._alive, self._lengths = self._alive[:count], self._lengths[:count]

    def _extend(self) -> None:
        image = self._image.T.contiguous()[:, :, None]
        filled = (len(self._alphas) - 1) % BLOCK + 1
        for _ in range(2):
            for earlier in (*self._basis[:-1], self._basis[-1][:, :filled]):
                image -= torch.bmm(earlier.mT, torch.bmm(earlier, image.to(self._dtype)))
        image = image[:, :, 0].T
        beta = torch.linalg.vector_norm(image, dim=0)
        self._alive = self._alive & (beta > 1e-10 * self._alphas[0].abs().max())
        self._betas.append(torch.where(self._alive, beta, 0.0))
        self._last = torch.where(self._alive, image / beta.clamp_min(torch.finfo(beta.dtype).tiny), 0.0).contiguous()

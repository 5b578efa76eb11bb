"""Lanczos recurrences of many vectors at once, and the quadratures and eigenvectors that products with A give.

For a symmetric A ⪰ 0, xᵀ f(A) x / xᵀx = ∫ f dμ_x. The m-point Gauss rule of μ_x has the eigenvalues of the
recurrence's tridiagonal matrix as nodes; the Gauss–Radau rule has zero, which no eigenvalue lies below, as one of its
nodes. Where the derivatives of f alternate in sign, as for −λ log λ and λ^α, the integral lies between the two (Golub
and Meurant 2010, chapter 6).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ckpt_probe.metrics.rows import EPSILON

Operator = Callable[[Tensor], Tensor]
"""x (N, b) float64 → A x."""


@dataclass(frozen=True)
class Rules:
    """Gauss (first) and Gauss–Radau (second) rules of b vectors: nodes and weights (2, b, m), weights of sum 1."""

    nodes: Tensor
    weights: Tensor

    @staticmethod
    def join(parts: "list[Rules]") -> "Rules":
        """Return the rules of all vectors; each part has as many nodes."""
        return Rules(torch.cat([p.nodes for p in parts], dim=1), torch.cat([p.weights for p in parts], dim=1))


@dataclass(frozen=True)
class Eigenpairs:
    """Approximate eigenvalues θ (k,) and orthonormal eigenvectors q, the columns of (N, k).

    spreads: (‖A q − θ q‖ / θ)² of each, (k,); qᵀ f(A) q lies between f(θ) and f(θ (1 + spread)) / (1 + spread), its
    one-point Gauss and two-point Gauss–Radau rule.
    """

    values: Tensor
    spreads: Tensor
    vectors: Tensor

    def remove(self, x: Tensor) -> Tensor:
        """Return x (N, b) without its part in the span of the eigenvectors; projecting twice removes rounding too."""
        for _ in range(2):
            x = x - self.vectors @ (self.vectors.T @ x)
        return x


def spectral(values: Tensor, order: float) -> Tensor:
    """Compute f of eigenvalues: −λ log λ for order 1, else λ^order."""
    return -torch.xlogy(values, values) if order == 1 else values.pow(order)


def leading_eigenpairs(operator: Operator, start: Tensor, depth: int, spread: float) -> Eigenpairs:
    """Compute leading eigenpairs by the Rayleigh–Ritz method in the block Krylov space of `start`.

    Args:
        operator: The matrix A, (N, N).
        start: Vectors (N, b); eigenvalues of a multiplicity up to b are found as often as they occur.
        depth: Powers of A, from 0 on, that the space consists of, so that its dimension is b · depth, at most N.
        spread: Only pairs whose spread is at most this are returned.
    """
    blocks = [torch.linalg.qr(start)[0]]
    for _ in range(depth - 1):
        blocks.append(torch.linalg.qr(operator(blocks[-1]))[0])
    basis = torch.linalg.qr(torch.cat(blocks, dim=1))[0]
    image = operator(basis)
    values, inside = torch.linalg.eigh(basis.T @ image)
    residuals = (image @ inside - basis @ inside * values).square().sum(dim=0)
    spreads = residuals / values.square()
    accurate = (values > len(start) * EPSILON * values[-1]) & (spreads <= spread)
    return Eigenpairs(values[accurate], spreads[accurate], basis @ inside[:, accurate])


class Lanczos:
    """The Lanczos recurrence of A from each column of probes (N, b); it goes on from where it was left.

    Without reorthogonalisation: rounding repeats nodes and shares their weights, which leaves the quadratures as they
    are (Knizhnerman 1996), so that three vectors a probe are all that is stored. A recurrence that ends early is padded
    with weight zero.
    """

    def __init__(self, operator: Operator, probes: Tensor) -> None:
        self._operator = operator
        self._last = probes / torch.linalg.vector_norm(probes, dim=0).clamp_min(torch.finfo(probes.dtype).tiny)
        self._before = torch.zeros_like(self._last)
        self._alphas: list[Tensor] = []
        self._betas: list[Tensor] = []
        self._largest = torch.zeros_like(self._last[0])

    @property
    def steps(self) -> int:
        """Number of steps taken."""
        return len(self._alphas)

    def run(self, steps: int) -> Rules:
        """Return the rules after `steps` steps, at most N."""
        while self.steps < min(steps, len(self._last)):
            if self._alphas:
                self._advance()
            self._image = self._operator(self._last)
            self._alphas.append((self._last * self._image).sum(dim=0))
            self._largest = torch.maximum(self._largest, self._alphas[-1])
        return self._rules()

    def _advance(self) -> None:
        residual = self._image - self._alphas[-1] * self._last
        if self._betas:
            residual -= self._betas[-1] * self._before
        beta = torch.linalg.vector_norm(residual, dim=0)
        self._largest = torch.maximum(self._largest, beta)
        beta = torch.where(beta > 8 * EPSILON * self._largest, beta, 0.0)
        self._betas.append(beta)
        self._before, self._last = self._last, torch.where(beta > 0, residual / beta, 0.0)

    def _rules(self) -> Rules:
        # Matrices of a few rows are solved on the CPU wherever the vectors are.
        alphas = torch.stack(self._alphas, dim=1).cpu()
        betas = torch.stack(self._betas, dim=1).cpu() if self._betas else alphas[:, :0]
        # Only the lower triangle of a symmetric matrix is read.
        gauss = torch.diag_embed(alphas) + torch.diag_embed(betas, -1)
        radau = gauss.clone()
        radau[:, -1, -1] = _last_of_radau(alphas, betas, 8 * EPSILON * self._largest.cpu())
        nodes, vectors = torch.linalg.eigh(torch.stack([gauss, radau]))
        return Rules(nodes, vectors[:, :, 0].square())


def _last_of_radau(alphas: Tensor, betas: Tensor, rounding: Tensor) -> Tensor:
    """Compute the last diagonal entries (b,) with which tridiagonal matrices have the eigenvalue zero.

    They make the last pivot of the elimination zero. Where an earlier pivot is rounding, zero is an eigenvalue already.
    """
    if not betas.shape[1]:
        return torch.zeros_like(alphas[:, 0])
    pivot, singular = alphas[:, 0], alphas[:, 0] <= rounding
    for alpha, beta in zip(alphas.T[1:-1], betas.T[:-1], strict=True):
        pivot = alpha - beta.square() / torch.where(singular, 1.0, pivot)
        singular = singular | (pivot <= rounding)
    ended = singular | (betas[:, -1] == 0)
    return torch.where(ended, alphas[:, -1], betas[:, -1].square() / torch.where(ended, 1.0, pivot))

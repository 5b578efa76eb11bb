"""A leading subspace whose part of a trace is computed rather than sampled, where that saves work."""

from collections.abc import Callable

import torch
from torch import Tensor

RANKS = (8, 16, 32, 64, 128)
PASSES = 2
"""Products with the operator after which random directions are leading ones, near enough: any subspace is correct."""

WORTHWHILE = 0.7
"""Deflation is taken up where it is foreseen to cost less than this share of the work without it."""


def worthwhile_rank(nodes: Tensor, counts: Tensor, wanted: float, *, steps: tuple[int, int], fewest: int) -> int:
    """How many leading directions to deflate so that a standard error of `wanted` costs the fewest products, or 0.

    nodes, counts: (b, m), where b pilot probes place the eigenvalues and how many of them, each probe for itself;
    steps: products that one probe, and one deflated direction, takes; fewest: probes that are taken in any case.
    """
    of_probe, of_direction = steps
    order = torch.argsort(nodes.flatten(), descending=True)
    values = nodes.flatten()[order].clamp_min(0)
    counts = counts.flatten()[order] / nodes.shape[0]
    before = counts.cumsum(0) - counts
    costs = {}
    for rank in (0, *RANKS):
        # A probe of signs varies by 2 ‖f(A) − s A − c I‖_F²: its length is fixed, and s A is its control.
        rest = torch.where(before >= rank, counts, 0.0) if rank else counts
        variance = 2 * _misfit(values, -torch.xlogy(values, values), rest)
        costs[rank] = rank * (PASSES + of_direction) + of_probe * max(fewest, variance / max(wanted**2, 1e-300))
    best = min(costs, key=costs.__getitem__)
    return best if costs[best] < WORTHWHILE * costs[0] and best < int(counts.sum()) // 4 else 0


def _misfit(x: Tensor, y: Tensor, weights: Tensor) -> float:
    """The weighted sum of squares that no straight line through (x, y) explains."""
    total = weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)
    x, y = x - (weights * x).sum() / total, y - (weights * y).sum() / total
    sxx = (weights * x * x).sum()
    explained = (weights * x * y).sum() ** 2 / sxx if sxx > 0 else 0.0
    return max(0.0, float((weights * y * y).sum() - explained))


def leading_subspace(operator: Callable[[Tensor], Tensor], first: Tensor, rank: int) -> Tensor:
    """An orthonormal basis (N, rank) near the leading eigenvectors of a symmetric operator, by subspace iteration.

    first: some independent directions (N, b) to begin with; those that lack are drawn from a generator of their own.
    """
    generator = torch.Generator().manual_seed(rank)
    more = torch.randn(first.shape[0], max(0, rank - first.shape[1]), generator=generator, dtype=first.dtype)
    basis = torch.cat([first[:, :rank], more.to(first.device)], dim=1)
    for _ in range(PASSES):
        basis, _ = torch.linalg.qr(operator(basis))
    return basis

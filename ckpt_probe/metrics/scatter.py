"""Counts, means and centred within-class scatter, updated and merged without cancellation."""

from collections.abc import Sequence

import torch
from torch import Tensor

Groups = Sequence[tuple[int, Tensor]]
"""A block sorted by label: (label, rows of that label (n_c, D) float64)."""


class Scatter:
    """Counts n_c, means μ_c, Σ‖z − μ_c‖² of each class, and Σ (z − μ_c)(z − μ_c)ᵀ over all of them.

    Always centred on the running mean (Chan, Golub and LeVeque 1979), never E[z²] − E[z]².
    """

    def __init__(self) -> None:
        self.features: int | None = None
        self.counts: dict[int, int] = {}
        self.means: dict[int, Tensor] = {}
        self.squares: dict[int, float] = {}
        self.within: Tensor | None = None

    def update(self, rows: Tensor, groups: Groups) -> None:
        """Add a block: all its rows (n, D), sorted by label, and the same rows by label."""
        block = Scatter()
        block.features = rows.shape[1]
        centred = torch.empty_like(rows)
        start = 0
        for label, of_class in groups:
            stop = start + of_class.shape[0]
            mean = of_class.mean(dim=0)
            torch.sub(of_class, mean, out=centred[start:stop])
            block.counts[label] = of_class.shape[0]
            block.means[label] = mean
            block.squares[label] = float(centred[start:stop].square().sum())
            start = stop
        block.within = centred.T @ centred
        self.merge(block, rows.device)

    def merge(self, other: "Scatter", device: torch.device | None) -> None:
        """Add what another has seen."""
        if other.features is None or other.within is None:
            return
        self.features = other.features
        within = other.within.to(device)
        self.within = within.clone() if self.within is None else self.within + within
        shifts = []
        for label, count in other.counts.items():
            mean = other.means[label].to(device)
            if label not in self.counts:
                self.counts[label], self.means[label], self.squares[label] = count, mean, other.squares[label]
                continue
            shifts.append(self._merge_class(label, count, mean, other.squares[label]))
        if shifts:
            rows = torch.stack(shifts)
            self.within += rows.T @ rows

    def _merge_class(self, label: int, count: int, mean: Tensor, squares: float) -> Tensor:
        # What the two means' distance adds to the scatter is this row's outer product with itself.
        total = self.counts[label] + count
        apart = mean - self.means[label]
        shift = apart * (self.counts[label] * count / total) ** 0.5
        self.means[label] = self.means[label] + apart * (count / total)
        self.squares[label] += squares + float(shift.square().sum())
        self.counts[label] = total
        return shift

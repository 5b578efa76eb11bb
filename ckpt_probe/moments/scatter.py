"""Counts, means and centred within-class scatter, updated and merged without cancellation."""

import torch
from torch import Tensor

from ckpt_probe.moments.grouping import Grouped
from ckpt_probe.moments.outer_products import add_outer, symmetric

MANY = 32
"""Rows a class from which a loop over classes is faster than gathering each row's mean."""


class Scatter:
    """For each class its count n_c, mean μ_c and Σ‖z − μ_c‖², and over all of them Σ (z − μ_c)(z − μ_c)ᵀ.

    Always centred on the running mean (Chan, Golub and LeVeque 1979), never E[z²] − E[z]². Tensors of C rows, C growing
    with the labels seen; `within` holds the lower triangle only (see `outer`).
    """

    def __init__(self, features: int, device: torch.device) -> None:
        self.counts = torch.zeros(0, dtype=torch.int64, device=device)
        self.means = torch.zeros(0, features, dtype=torch.float64, device=device)
        self.squares = torch.zeros(0, dtype=torch.float64, device=device)
        self.within = torch.zeros(features, features, dtype=torch.float64, device=device)

    @property
    def present(self) -> Tensor:
        """Labels of the classes that have a sample, in increasing order."""
        return self.counts.nonzero().squeeze(1)

    def covariance(self) -> Tensor:
        """Σ_W, the within-class covariance over all samples, (D, D)."""
        return symmetric(self.within) / self.counts.sum()

    def update(self, block: Grouped) -> None:
        """Add a block of rows sorted by label."""
        means, centred, squares = _centred(block)
        add_outer(self.within, centred)
        self._merge(block.labels, block.sizes, means, squares)

    def merge(self, other: "Scatter") -> None:
        """Add what another has seen."""
        device = self.within.device
        self.within += other.within.to(device)
        labels = other.present
        parts = (other.counts[labels], other.means[labels], other.squares[labels])
        self._merge(labels.to(device), *(part.to(device) for part in parts))

    def _merge(self, labels: Tensor, counts: Tensor, means: Tensor, squares: Tensor) -> None:
        if not len(labels):
            return
        self._grow(int(labels[-1]) + 1)
        # As float64: torch divides whole numbers in float32.
        before, counts = self.counts[labels].double(), counts.double()
        total = before + counts
        apart = means - self.means[labels]
        # What the distance of two means adds to the scatter is the outer product of this row with itself.
        shifts = apart * (before * counts / total).sqrt()[:, None]
        met = before > 0
        add_outer(self.within, shifts[met])
        self.squares[labels] += squares + shifts.square().sum(dim=1)
        self.means[labels] += apart * (counts / total)[:, None]
        self.counts[labels] = total.to(torch.int64)

    def _grow(self, classes: int) -> None:
        more = classes - len(self.counts)
        if more > 0:
            self.counts = torch.cat([self.counts, self.counts.new_zeros(more)])
            self.means = torch.cat([self.means, self.means.new_zeros(more, self.means.shape[1])])
            self.squares = torch.cat([self.squares, self.squares.new_zeros(more)])


def _centred(block: Grouped) -> tuple[Tensor, Tensor, Tensor]:
    """Class means (k, D), rows less their class's mean (n, D), and Σ‖z − μ_c‖² of each class (k,)."""
    if len(block.rows) >= MANY * len(block.labels):
        parts, centred = block.by_class(), torch.empty_like(block.rows)
        means = torch.stack([part.mean(dim=0) for part in parts])
        placed = centred.split(block.sizes.tolist())
        for part, mean, target in zip(parts, means, placed, strict=True):
            torch.sub(part, mean, out=target)
        return means, centred, torch.stack([torch.linalg.vector_norm(part).square() for part in placed])
    each = block.each()
    sums = block.rows.new_zeros(len(block.labels), block.rows.shape[1])
    means = sums.index_add_(0, each, block.rows) / block.sizes[:, None]
    centred = block.rows - means[each]
    squares = block.rows.new_zeros(len(means))
    return means, centred, squares.index_add_(0, each, torch.linalg.vector_norm(centred, dim=1).square())

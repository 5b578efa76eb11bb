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
    with the labels seen; `within` holds the lower triangle only (see `add_outer`), None where it is not asked for.
    """

    def __init__(self, features: int, device: torch.device, *, products: bool = True) -> None:
        self.counts = torch.zeros(0, dtype=torch.int64, device=device)
        self.means = torch.zeros(0, features, dtype=torch.float64, device=device)
        self.squares = torch.zeros(0, dtype=torch.float64, device=device)
        self.within = torch.zeros(features, features, dtype=torch.float64, device=device) if products else None

    @property
    def present(self) -> Tensor:
        """Labels of the classes that have a sample, in increasing order."""
        return self.counts.nonzero().squeeze(1)

    def by_class(self) -> dict[str, Tensor]:
        """What is kept of each class."""
        return {"counts": self.counts, "means": self.means, "squares": self.squares}

    def covariance(self) -> Tensor:
        """Σ_W, the within-class covariance over all samples, (D, D)."""
        assert self.within is not None
        return symmetric(self.within) / self.counts.sum()

    def update(self, block: Grouped, dtype: torch.dtype = torch.float64) -> None:
        """Add a block of rows sorted by label; products are in `dtype`, their sums over blocks in float64."""
        few = len(block.rows) >= MANY * len(block.labels)
        means, squares = self._by_class(block.to(dtype)) if few else self._by_pieces(block, dtype)
        self._merge(block.labels, block.sizes, means, squares)

    def merge(self, other: "Scatter") -> None:
        """Add what another has seen."""
        device = self.counts.device
        if self.within is not None and other.within is not None:
            self.within += other.within.to(device)
        labels = other.present
        parts = (other.counts[labels], other.means[labels], other.squares[labels])
        self._merge(labels.to(device), *(part.to(device) for part in parts))

    def _by_class(self, block: Grouped) -> tuple[Tensor, Tensor]:
        """Class means (k, D) and Σ‖z − μ_c‖² of each class (k,), by a loop over the classes."""
        parts, centred = block.by_class(), torch.empty_like(block.rows)
        means = torch.stack([part.mean(dim=0) for part in parts])
        placed = centred.split(block.sizes.tolist())
        for part, mean, target in zip(parts, means, placed, strict=True):
            torch.sub(part, mean, out=target)
        if self.within is not None:
            add_outer(self.within, centred)
        squares = torch.stack([torch.linalg.vector_norm(part).square() for part in placed])
        return means.to(torch.float64), squares.to(torch.float64)

    def _by_pieces(self, block: Grouped, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The same by gathering each row's mean, a piece of the rows at a time."""
        each = block.each()
        sums = self.means.new_zeros(len(block.labels), block.rows.shape[1])
        for piece in block.pieces():
            sums.index_add_(0, each[piece], block.rows[piece].to(torch.float64))
        means = sums / block.sizes[:, None]
        squares = self.squares.new_zeros(len(means))
        for piece in block.pieces():
            centred = (block.rows[piece].to(torch.float64) - means[each[piece]]).to(dtype)
            if self.within is not None:
                add_outer(self.within, centred)
            squares.index_add_(0, each[piece], torch.linalg.vector_norm(centred, dim=1).square().to(torch.float64))
        return means, squares

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
        if self.within is not None:
            add_outer(self.within, shifts[before > 0])
        self.squares[labels] += squares + shifts.square().sum(dim=1)
        self.means[labels] += apart * (counts / total)[:, None]
        self.counts[labels] = total.to(torch.int64)

    def _grow(self, classes: int) -> None:
        more = classes - len(self.counts)
        if more > 0:
            self.counts = torch.cat([self.counts, self.counts.new_zeros(more)])
            self.means = torch.cat([self.means, self.means.new_zeros(more, self.means.shape[1])])
            self.squares = torch.cat([self.squares, self.squares.new_zeros(more)])

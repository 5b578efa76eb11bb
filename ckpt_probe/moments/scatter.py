"""Counts, means and centred within-class scatter, updated and merged without cancellation."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ckpt_probe.metrics.rounding import largest, power_of_two, row_lengths
from ckpt_probe.moments.grouping import Grouped
from ckpt_probe.moments.outer_products import add_outer, symmetric

MANY = 32
"""Rows a class from which a loop over classes is faster than gathering each row's mean."""


SAFE = {torch.float64: 200, torch.float32: 8}
"""Powers of two, up and down, within which products of rows in a precision neither overflow nor underflow."""


class Scatter:
    """For each class its count n_c, mean μ_c and Σ‖z − μ_c‖², and over all of them Σ (z − μ_c)(z − μ_c)ᵀ.

    Always centred on the running mean (Chan, Golub and LeVeque 1979), never E[z²] − E[z]². Tensors of C rows, C growing
    with the labels seen; `within` holds the lower triangle only (see `add_outer`), None where it is not asked for. Only
    products of centred rows are in `dtype`, all else in float64. All are of rows divided by `unit`, a power of two: 1
    unless squares of the rows, whose largest entry is `size`, would overflow or underflow.
    """

    def __init__(
        self, features: int, device: torch.device, *, products: bool = True, dtype: torch.dtype = torch.float64
    ) -> None:
        self.counts = torch.zeros(0, dtype=torch.int64, device=device)
        self.means = torch.zeros(0, features, dtype=torch.float64, device=device)
        self.squares = torch.zeros(0, dtype=torch.float64, device=device)
        self.within = torch.zeros(features, features, dtype=torch.float64, device=device) if products else None
        self.size = 0.0
        self.unit = 1.0
        self.dtype = dtype

    @property
    def present(self) -> Tensor:
        """Return the labels of the classes that have a sample, in increasing order."""
        return self.counts.nonzero().squeeze(1)

    @property
    def lengths(self) -> Tensor:
        """Return the root mean square length of the rows of each class, (C,)."""
        return torch.hypot((self.squares / self.counts.clamp(min=1)).sqrt(), row_lengths(self.means))

    def state(self) -> dict[str, Tensor]:
        """Return copies of all sums, and the unit beside it where the rows' own would overflow or underflow."""
        copy = Scatter(self.means.shape[1], self.counts.device, products=self.within is not None)
        copy.merge(self)
        state = {"counts": copy.counts, "means": copy.means, "squares": copy.squares}
        if copy.within is not None:
            state["within"] = symmetric(copy.within)
        return state if copy.unit == 1 else {**state, "unit": copy.means.new_tensor(copy.unit)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Replace all sums by those of `state`, whose tensors then are this one's own."""
        self.counts, self.means, self.squares = (state[name] for name in ("counts", "means", "squares"))
        if self.within is not None:
            self.within = state["within"].contiguous()
        self.unit = float(state["unit"]) if "unit" in state else 1.0
        self.size = 0.0
        self.fit(largest(self.lengths) * self.unit)

    def covariance(self) -> Tensor:
        """Return Σ_W, the within-class covariance over all samples, (D, D)."""
        assert self.within is not None
        return symmetric(self.within) / self.counts.sum()

    def fit(self, size: float) -> None:
        """Choose the unit for rows whose largest entry is `size`, beside those seen."""
        self.size = max(self.size, size)
        unit = power_of_two(self.size, SAFE[self.dtype])
        if unit != self.unit:
            change, self.unit = self.unit / unit, unit
            # Not by the square of the change, which may overflow where the result does not.
            self.means = self.means * change
            self.squares = self.squares * change * change
            self.within = None if self.within is None else self.within * change * change

    def update(self, block: Grouped) -> None:
        """Add a block of rows sorted by label, of no larger size than the unit was chosen for."""
        if self.unit != 1:
            block = Grouped(block.rows.to(torch.float64) / self.unit, block.labels, block.sizes)
        few = len(block.rows) >= MANY * len(block.labels)
        means, squares = self._by_class(block.to(torch.float64)) if few else self._by_pieces(block)
        self._merge(block.labels, block.sizes, means, squares)

    def merge(self, other: "Scatter") -> None:
        """Add what another has seen."""
        device, labels = self.counts.device, other.present
        if not len(labels):
            return
        self.fit(other.size)
        change = other.unit / self.unit
        if self.within is not None and other.within is not None:
            self.within += (other.within * change * change).to(device)
        parts = (other.counts[labels], other.means[labels] * change, other.squares[labels] * change * change)
        self._merge(labels.to(device), *(part.to(device) for part in parts))

    def _by_class(self, block: Grouped) -> tuple[Tensor, Tensor]:
        """Return class means (k, D) and Σ‖z − μ_c‖² of each class (k,), by a loop over the classes."""
        parts, centred = block.by_class(), torch.empty_like(block.rows)
        means = torch.stack([part.mean(dim=0) for part in parts])
        moved = centred.split(block.sizes.tolist())
        for part, mean, target in zip(parts, means, moved, strict=True):
            torch.sub(part, mean, out=target)
        if self.within is not None:
            add_outer(self.within, centred.to(self.dtype))
        return means, torch.stack([torch.linalg.vector_norm(part).square() for part in moved])

    def _by_pieces(self, block: Grouped) -> tuple[Tensor, Tensor]:
        """Return the same by gathering each row's mean, a piece of the rows at a time."""
        each = block.each()
        sums = self.means.new_zeros(len(block.labels), block.rows.shape[1])
        for piece in block.pieces():
            sums.index_add_(0, each[piece], block.rows[piece].to(torch.float64))
        means = sums / block.sizes[:, None]
        squares = self.squares.new_zeros(len(means))
        for piece in block.pieces():
            centred = block.rows[piece].to(torch.float64) - means[each[piece]]
            squares.index_add_(0, each[piece], centred.square().sum(dim=1))
            if self.within is not None:
                add_outer(self.within, centred.to(self.dtype))
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

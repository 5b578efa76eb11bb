"""The classes as points: means, centred means and classifier rows, those that are rounding as zero; and their NC1."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ckpt_probe.metrics import collapse, pairs
from ckpt_probe.metrics.gram import where_float64_is
from ckpt_probe.metrics.rounding import near_one, rounding, row_lengths, without_rounding
from ckpt_probe.moments.grouping import Rows
from ckpt_probe.moments.scatter import Scatter

DIGITS = 1e-5
"""Share of NC1 that rounding of Σ_W may be before NC1 is read from the rows."""
COINCIDE = "class means coincide"
HIDDEN = "along the class means the spread is below the rounding of Σ_W, and the features are not at hand"


@dataclass(frozen=True)
class Geometry:
    """Classes that count, k of them, in units of the scatter.

    Attributes:
        labels: Their labels, (k,).
        means: Their means, (k, D).
        M: The means less their mean; rows that are no longer than their rounding are zero.
        heads: Their classifier rows, (k, D), near 1 in size, or None.
        variances: Mean ‖z − μ_c‖², (k,); those that are rounding are zero.
        sizes: Rounding of the means, (k,).
        centred_sizes: Rounding of the rows of M, (k,).
        scatter: The sums that they come from.
        compared: Whether it is asked how means and classifier rows agree.
    """

    labels: Tensor
    means: Tensor
    M: Tensor
    heads: Tensor | None
    variances: Tensor
    sizes: Tensor
    centred_sizes: Tensor
    scatter: Scatter
    compared: bool = True

    @staticmethod
    def of(scatter: Scatter, present: Tensor, weights: Tensor | None, *, compared: bool = True) -> "Geometry":
        """Return that of the classes `present` (k,)."""
        means, lengths = _at(scatter.means, present), scatter.lengths[present]
        sizes = rounding(scatter.counts[present], lengths)
        centred_sizes = sizes + sizes.mean() + rounding(len(means), lengths.mean())
        M = without_rounding(means - means.mean(dim=0), centred_sizes)
        heads = None if weights is None else near_one(_at(weights, present))
        variances = spreads(scatter)[present]
        return Geometry(present, means, M, heads, variances, sizes, centred_sizes, scatter, compared)

    def distances(self) -> pairs.Cdnv:
        """Return what CDNV is read from."""
        return pairs.Cdnv(self.variances, self.means, row_lengths(self.M), self.sizes)

    def evenness(self, unit: Tensor) -> pairs.Uniformity:
        """Return what uniformity is read from; unit: the rows of M scaled to unit length, (k, D)."""
        lengths = row_lengths(self.M)
        return pairs.Uniformity(unit, self.centred_sizes / torch.where(lengths > 0, lengths, 1.0))

    def nc1(self, rows: Rows | None) -> tuple[float | None, str]:
        """Return NC1, and why it is missing.

        Where a few rows are so long that their products hide the spread along the means, it is read from the rows.
        """
        axes = collapse.between_axes(self.M, float(self.centred_sizes.square().mean().sqrt()))
        if axes is None:
            return None, COINCIDE
        if not bool(spreads(self.scatter).any()):
            return 0.0, ""
        within = self.scatter.covariance()
        spread = float(((axes @ within) * axes).sum())
        # Products of entries, the largest on the diagonal, were each rounded once, up or down.
        hidden = rounding(1, float((axes.square() @ within.diagonal()).sum()), self.scatter.dtype)
        if hidden > DIGITS * spread:
            if rows is None:
                return None, HIDDEN
            spread = _spread_of_rows(axes, self.scatter, rows)
        return spread / len(self.M), ""


def spreads(scatter: Scatter) -> Tensor:
    """Return the mean ‖z − μ_c‖² of each class, (C,); zero where the distances are the rounding of the mean."""
    counts = scatter.counts.clamp(min=1)
    variances = scatter.squares / counts
    return torch.where(variances.sqrt() > rounding(counts, scatter.lengths), variances, 0.0)


def _spread_of_rows(axes: Tensor, scatter: Scatter, rows: Rows) -> float:
    """Return Σ_j a_jᵀ Σ_W a_j for axes a_j (r, D), from the rows themselves; products that are rounding are zero."""
    total, widths = 0.0, row_lengths(axes)
    for features, labels in rows():
        block = where_float64_is(features).to(axes.device, torch.float64) / scatter.unit
        away = block - scatter.means[labels.to(axes.device, torch.int64)]
        along = away @ axes.T
        sizes = rounding(axes.shape[1], row_lengths(block)[:, None] * widths)
        total += float(torch.where(along.abs() > sizes, along, 0.0).square().sum())
    return total / int(scatter.counts.sum())


def _at(rows: Tensor, present: Tensor) -> Tensor:
    # Where all are present there may be many, and a copy is as large as all else.
    return rows if len(present) == len(rows) else rows[present]

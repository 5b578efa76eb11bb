"""Sums of outer products Σ x xᵀ at little more than half the work of the whole product."""

from torch import Tensor

WIDTH = 96
"""Columns of a strip, twice as many for more than 256: narrower ones save more of the work and run less well."""


def add_outer(total: Tensor, rows: Tensor) -> None:
    """Add rowsᵀ rows to `total` in place: rows (n, D), total (D, D) of their dtype, or float64 for float32 rows.

    Only the triangle on and below the diagonal is valid afterwards; `symmetric` makes it whole.
    """
    features = rows.shape[1]
    width = WIDTH if features <= 256 else 2 * WIDTH
    for start in range(0, features, width):
        stop = min(start + width, features)
        if rows.dtype == total.dtype:
            total[start:stop, :stop].addmm_(rows[:, start:stop].T, rows[:, :stop])
        else:
            total[start:stop, :stop] += rows[:, start:stop].T @ rows[:, :stop]


def symmetric(total: Tensor) -> Tensor:
    """The whole symmetric matrices (…, D, D) whose lower triangles `add_outer` has filled."""
    lower = total.tril()
    return lower + lower.tril(-1).mT

"""Rows, unit rows and their Gram matrix: where every matrix entropy begins."""

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ckpt_probe.errors import DataError
from ckpt_probe.metrics.arrays import as_tensor

Array = np.ndarray | Tensor
SHORT, LONG = 1e-140, 1e140
"""Between these lengths the squares of a row's entries neither underflow nor overflow."""
STEEPEST = 64
"""The gradient of an entropy by a unit row is shorter than this: 2/n · (|log λ| + 1), λ no smaller than rounding."""
AnyArray = TypeVar("AnyArray", np.ndarray, Tensor)


def gram(X: AnyArray) -> AnyArray:
    """Gram matrix of the rows of X, each scaled to unit length: K = X̂ X̂ᵀ, K_ii = 1 (arXiv 2409.16767, section 3).

    X: (n, d), numpy or torch. Returns (m, m) float64 of the same kind, with gradient for torch, on the CPU for MPS;
    m < n where rows of zero length were left out, since they have no direction. Raises DataError where X is not a
    finite matrix, or where more than half of its rows have zero length.
    """
    rows, _ = unit_rows(to_rows(X))
    K = rows @ rows.T
    return K.numpy() if isinstance(X, np.ndarray) else K  # pyright: ignore[reportReturnType]


def to_rows(X: Array, name: str = "X") -> Tensor:
    """X as a finite float64 tensor of rows, (n, d), on its device where that has float64.

    Rows too short for the gradient of their direction to be finite count as they are, and have none. Raises DataError
    where it is not two-dimensional, has no row or column, or holds NaN, infinity or complex numbers.
    """
    rows = as_tensor(X, name)
    if rows.ndim != 2 or rows.shape[0] == 0 or rows.shape[1] == 0:
        raise DataError(f"{name}: expected one vector per row, shape (n, d), found shape {tuple(rows.shape)}")
    lasting = has_gradient(rows) if rows.requires_grad else None
    rows = where_float64_is(rows).to(torch.float64)
    require_finite(rows, name)
    return rows if lasting is None else torch.where(lasting.to(rows.device)[:, None], rows, rows.detach())


def has_gradient(rows: Tensor) -> Tensor:
    """Which rows of (n, d) are long enough for the gradient of their direction to be a number of their dtype, (n,).

    It grows as 1/length: of denormal rows it would be infinite.
    """
    return rows.detach().abs().amax(dim=1) >= STEEPEST / torch.finfo(rows.dtype).max


def where_float64_is(X: Tensor) -> Tensor:
    """X, or its copy on the CPU where X is on MPS, which has no float64; with gradient."""
    return X.cpu() if X.device.type == "mps" else X


def require_finite(rows: Tensor, name: str, first_row: int = 0) -> None:
    """Raise DataError where a row of (n, d) holds NaN or infinity: how many rows, and the number of the first one."""
    # One reduction over the whole block settles the usual case: NaN and infinity both survive a sum.
    if not rows.is_floating_point() or torch.isfinite(rows.detach().sum()):
        return
    bad = ~torch.isfinite(rows).all(dim=1)
    count = int(bad.sum())
    if count:
        first = int(bad.nonzero()[0]) + first_row
        noun = "row holds" if count == 1 else "rows hold"
        raise DataError(f"{name}: {count} {noun} NaN or infinity, the first is row {first}")


def unit_rows(rows: Tensor, name: str = "X") -> tuple[Tensor, Tensor]:
    """The rows of (n, d) that have a direction, scaled to unit length, (m, d), and which ones they are, (n,) bool.

    Raises DataError where more than half of the rows have zero length.
    """
    unit, kept = directions(rows)
    require_directions(rows.shape[0] - unit.shape[0], rows.shape[0], name)
    return unit, kept


def directions(rows: Tensor) -> tuple[Tensor, Tensor]:
    """As `unit_rows`, however few rows have a direction."""
    lengths = torch.linalg.vector_norm(rows, dim=1)
    measured = lengths.detach()
    if bool(((measured > SHORT) & (measured < LONG)).all()):
        return rows / lengths[:, None], torch.ones_like(measured, dtype=torch.bool)
    # Scaling by the largest entry first keeps tiny rows from underflowing when they are squared, and huge ones whole.
    scale = rows.detach().abs().amax(dim=1)
    kept = scale > 0
    if not bool(kept.all()):
        rows, scale = rows[kept], scale[kept]
    scaled = rows / scale[:, None]
    return scaled / torch.linalg.vector_norm(scaled, dim=1, keepdim=True), kept


def require_directions(left_out: int, total: int, name: str) -> None:
    """Raise DataError where more than half of `total` rows were left out for having zero length."""
    if 2 * left_out > total:
        raise DataError(f"{name}: {left_out} of {total} rows have zero length; at least half must be non-zero")


def smaller_gram(rows: Tensor) -> Tensor:
    """Whichever of X Xᵀ (n × n) and Xᵀ X (d × d) is smaller: their non-zero eigenvalues are the same."""
    return rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows

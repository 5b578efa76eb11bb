"""Rows, unit rows and their Gram matrix, from which matrix entropies are computed."""

import math
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ckpt_probe.errors import DataError
from ckpt_probe.keywords import checked_keywords
from ckpt_probe.metrics.arrays import as_tensor
from ckpt_probe.metrics.rounding import LONG, SHORT, largest

Array = np.ndarray | Tensor
AnyArray = TypeVar("AnyArray", np.ndarray, Tensor)


@checked_keywords
def gram(X: AnyArray) -> AnyArray:
    """Return the Gram matrix K = X̂ X̂ᵀ of the rows of X, scaled to unit length (arXiv 2409.16767, section 3).

    Args:
        X: Rows, (n, d), numpy or torch.

    Returns:
        Matrix (m, m), float64, numpy or torch as X, with gradient for torch, on the CPU for MPS. m is smaller than n
        if rows of zero length were left out, which have no direction.

    Raises:
        DataError: If X is not a finite matrix, or more than half of its rows have zero length.
    """
    rows, _ = unit_rows(to_rows(X))
    K = rows @ rows.T
    return K.numpy() if isinstance(X, np.ndarray) else K  # pyright: ignore[reportReturnType]


def to_rows(X: Array, name: str = "X") -> Tensor:
    """Return X as a finite float64 tensor of rows, (n, d), on its device where that has float64; with gradient.

    Denormal rows have no gradient. Gradients of directions grow as 1/length, and are limited to the largest number of
    the dtype of X.

    Raises:
        DataError: If X is not two-dimensional, has no row or column, or contains NaN, infinity or complex numbers.
    """
    rows = as_tensor(X, name)
    if rows.ndim != 2 or rows.shape[0] == 0 or rows.shape[1] == 0:
        raise DataError(f"{name}: expected one vector per row, shape (n, d), found shape {tuple(rows.shape)}")
    require_finite(rows.detach(), name)
    if not rows.requires_grad:
        return where_float64_is(rows).to(torch.float64)
    lasting, most = has_gradient(rows)[:, None], torch.finfo(rows.dtype).max
    rows = where_float64_is(torch.where(lasting, rows, rows.detach())).to(torch.float64)
    # A view, because the hook must not be on a tensor of the caller.
    rows = rows.view_as(rows)
    rows.register_hook(lambda gradient: None if gradient is None else gradient.clamp(-most, most))
    return rows


def has_gradient(rows: Tensor) -> Tensor:
    """Return which rows of (n, d) are neither zero nor denormal in their dtype, (n,)."""
    return rows.detach().abs().amax(dim=1) >= torch.finfo(rows.dtype).tiny


def where_float64_is(X: Tensor) -> Tensor:
    """Return X, or a copy on the CPU if X is on MPS, which has no float64; with gradient."""
    return X.cpu() if X.device.type == "mps" else X


def require_finite(rows: Tensor, name: str, first_row: int = 0) -> float:
    """Return the largest absolute value of (n, d) rows, 0 for no rows.

    Raises:
        DataError: If rows contain NaN or infinity, with their number and the index of the first one.
    """
    size = largest(rows.detach())
    if math.isfinite(size):
        return size
    bad = ~torch.isfinite(rows).all(dim=1)
    count, first = int(bad.sum()), int(bad.nonzero()[0]) + first_row
    noun = "row holds" if count == 1 else "rows hold"
    raise DataError(f"{name}: {count} {noun} NaN or infinity, the first is row {first}")


def unit_rows(rows: Tensor, name: str = "X") -> tuple[Tensor, Tensor]:
    """Return the rows of (n, d) that have a direction, scaled to unit length (m, d), and their mask (n,).

    Raises:
        DataError: If more than half of the rows have zero length.
    """
    unit, mask = directions(rows)
    require_directions(rows.shape[0] - unit.shape[0], rows.shape[0], name)
    return unit, mask


def directions(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the results of `unit_rows` for any number of rows that have a direction."""
    lengths = torch.linalg.vector_norm(rows, dim=1)
    measured = lengths.detach()
    if bool(((measured > SHORT) & (measured < LONG)).all()):
        return rows / lengths[:, None], torch.ones_like(measured, dtype=torch.bool)
    # Division by the largest entry prevents underflow of squares of small rows, and overflow for large ones.
    scale = rows.detach().abs().amax(dim=1)
    mask = scale > 0
    if not bool(mask.all()):
        rows, scale = rows[mask], scale[mask]
    scaled = rows / scale[:, None]
    return scaled / torch.linalg.vector_norm(scaled, dim=1, keepdim=True), mask


def require_directions(left_out: int, total: int, name: str) -> None:
    """Raise DataError if more than half of `total` rows were left out because they have zero length."""
    if 2 * left_out > total:
        raise DataError(f"{name}: {left_out} of {total} rows have zero length; at least half must be non-zero")


def smaller_gram(rows: Tensor) -> Tensor:
    """Return X Xᵀ (n × n) or Xᵀ X (d × d), whichever is smaller: their non-zero eigenvalues are the same."""
    return rows @ rows.T if rows.shape[0] <= rows.shape[1] else second_moment(rows)


def second_moment(rows: Tensor) -> Tensor:
    """Return Xᵀ X of rows (n, d), (d, d), as the sum of the products of centred rows and of their mean.

    The rounding of a plain sum over many similar rows would hide their differences.
    """
    mean = rows.mean(dim=0)
    away = rows - mean
    return away.T @ away + len(rows) * mean.outer(mean)

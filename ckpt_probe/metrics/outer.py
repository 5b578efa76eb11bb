"""Sums of outer products Σ x xᵀ, half the work where a library for symmetric products is at hand."""

import torch
from scipy.linalg.blas import dsyrk  # pyright: ignore[reportAttributeAccessIssue]
from torch import Tensor

LEAST = 256
"""Columns from which the library for symmetric products pays: its threads and torch's are in each other's way."""


def add_outer(total: Tensor, rows: Tensor) -> None:
    """Add rowsᵀ rows to `total` in place: rows (n, D), total (D, D), both float64.

    On the CPU only the triangle on and below the diagonal is valid afterwards; `symmetric` makes it whole.
    """
    if rows.shape[1] < LEAST or total.device.type != "cpu" or rows.dtype != torch.float64 or not total.is_contiguous():
        total.addmm_(rows.T, rows)
        return
    # To a Fortran library a C-ordered array is its transpose, so that its upper triangle is our lower one.
    dsyrk(1.0, rows.contiguous().numpy().T, beta=1.0, c=total.numpy().T, overwrite_c=1, lower=0)


def symmetric(total: Tensor) -> Tensor:
    """The whole symmetric matrices (…, D, D) whose lower triangles `add_outer` has filled."""
    lower = total.tril()
    return lower + lower.tril(-1).mT

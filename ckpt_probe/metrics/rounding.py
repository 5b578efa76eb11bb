"""Rule of zero: a number that is not larger than the rounding of its inputs counts as zero."""

import math

import torch
from torch import Tensor

SHORT, LONG = 1e-140, 1e140
"""Between these lengths the squares of a row's entries neither underflow nor overflow."""

EPSILON = torch.finfo(torch.float64).eps
"""Relative precision ε of float64. A computed number counts as zero up to n · ε · m.

That bounds the error of a mean of n numbers of magnitude m in any order of summation (Higham 2002, section 4.2), and of
an eigenvalue of an n × n matrix whose largest is m. Lengths have the root mean square of theirs as magnitude.
"""


def number(value: Tensor) -> float | Tensor:
    """Return a value (0-d) as a float, or unchanged if it has a gradient."""
    return value if value.requires_grad else float(value)


def without_rounding(rows: Tensor, sizes: float | Tensor) -> Tensor:
    """Return rows (n, D), with rows that are not longer than `sizes` (a number, or (n,)) replaced by zero."""
    present = row_lengths(rows.detach()) > sizes
    return rows if bool(present.all()) else torch.where(present[:, None], rows, 0.0)


def centred(rows: Tensor) -> Tensor:
    """Return rows (n, D) minus their mean; entries that are not larger than the rounding of the mean are zero."""
    moved = rows - rows.mean(dim=0)
    sizes = len(rows) * EPSILON * rows.detach().abs().amax(dim=0)
    return torch.where(moved.detach().abs() > sizes, moved, 0.0)


def row_lengths(rows: Tensor) -> Tensor:
    """Return the lengths (n,) of rows (n, D), also if their squares overflow or underflow."""
    lengths = torch.linalg.vector_norm(rows, dim=1)
    if bool(((lengths > SHORT) & (lengths < LONG)).all()):
        return lengths
    scale = rows.abs().amax(dim=1)
    return torch.linalg.vector_norm(rows / torch.where(scale > 0, scale, 1.0)[:, None], dim=1) * scale


def largest(values: Tensor) -> float:
    """Return the largest absolute value; NaN if one is NaN, 0 without values."""
    # Several times as fast as abs().max(), and as aminmax().
    return max(float(values.max()), -float(values.min())) if values.numel() else 0.0


def power_of_two(size: float, widest: int = 200) -> float:
    """Return the power of two just above a number, or 1 for zero and for numbers within 2^±widest.

    Dividing by it changes no digit, and leaves fourth powers that neither overflow nor underflow.
    """
    exponent = math.frexp(size)[1]
    # At most 2^±1000, whose reciprocals are finite.
    return 1.0 if abs(exponent) <= widest else 2.0 ** max(-1000, min(exponent, 1000))


def near_one(rows: Tensor) -> Tensor:
    """Return rows divided by a power of two near their largest entry, for results that do not depend on scale."""
    unit = power_of_two(largest(rows.detach()))
    return rows if unit == 1 else rows / unit

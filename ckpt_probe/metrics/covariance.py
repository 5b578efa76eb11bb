"""Numbers of the spectrum of rows as they are: RankMe, the decay of α-ReQ, participation ratio; lines of least squares.

`effective_rank` of `entropy` is another number: it scales rows to unit length, and weighs squared singular values.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ckpt_probe.errors import DataError
from ckpt_probe.metrics.entropy import TWO_DIGITS, as_given, entropy_of_spectrum
from ckpt_probe.metrics.rows import EPSILON, Array, centred, near_one, spectrum, to_rows

FIT_FIRST, FIT_LAST = 11, 100
"""Ranks of the eigenvalues to which `alpha_req` fits its line, as in the code of Agrawal et al. 2022."""

FEWEST = 3
"""Smallest number of points, or of eigenvalues, for the fit of a line; a line fits fewer perfectly."""

EQUAL_ROWS = "all rows are equal"
NO_ROWS = "all rows are zero"
FEW_DIRECTIONS = f"the rows vary along fewer than {FEWEST} directions"


def rankme(X: Array) -> float | Tensor:
    """Compute RankMe, exp H(σ/Σσ) of the singular values σ of rows as they are, 1 … min(n, d).

    Garrido et al. 2023, arXiv 2210.02885, without the 1e-7 that is added to each share there.

    Args:
        X: Rows, (n, d), neither centred nor scaled.

    Returns:
        The value: a float for numpy, a 0-d tensor with gradient for torch.

    Raises:
        DataError: If X is not a finite matrix, or all rows are zero.
    """
    rows = near_one(to_rows(X))
    return as_given(_defined(rankme_of(_smaller(rows)), NO_ROWS), X)


def alpha_req(X: Array) -> float | Tensor:
    """Compute α of λ_i ∝ i^−α, λ_i the eigenvalues of the covariance of rows (n, d) in descending order.

    α is minus the slope of log λ_i on log i (Agrawal et al. 2022, α-ReQ); see `decay_rate`.

    Args:
        X: Rows, (n, d).

    Returns:
        The value: a float for numpy, a 0-d tensor with gradient for torch.

    Raises:
        DataError: If X is not a finite matrix, or has fewer than three directions.
    """
    return as_given(_defined(decay_rate(descending(_smaller(_away(X)))), FEW_DIRECTIONS), X)


def participation_ratio(X: Array) -> float | Tensor:
    """Compute (Σλ)²/Σλ² of the eigenvalues λ of the covariance of rows (n, d), 1 … min(n − 1, d).

    Args:
        X: Rows, (n, d).

    Returns:
        The value: a float for numpy, a 0-d tensor with gradient for torch.

    Raises:
        DataError: If X is not a finite matrix, or all rows are equal.
    """
    return as_given(_defined(participation(_smaller(_away(X))), EQUAL_ROWS), X)


def rankme_of(second: Tensor, least: float = 0.0) -> Tensor | None:
    """Return RankMe of rows from their second moment ZᵀZ or Gram matrix ZZᵀ (m, m), of any scale; None if it is zero.

    Singular values are roots of eigenvalues, of which those that are rounding count as zero; `least` is that of the
    entries of the matrix, relative to the largest eigenvalue.
    """
    if not bool(second.detach().trace() > 0):
        return None
    singular = spectrum(second, least=least).sqrt()
    return entropy_of_spectrum(singular / singular.sum()).exp()


def descending(covariance: Tensor, *, least: float = 0.0) -> Tensor:
    """Return the eigenvalues (k,) of a covariance (m, m) of which two digits at least are known, the largest first."""
    return spectrum(covariance, least=max(least, TWO_DIGITS * EPSILON)).flip(0)


def fit_range(count: int) -> tuple[int, int]:
    """Return the first and the last rank to which `decay_rate` fits its line, for this number of eigenvalues.

    They are 11 and 100. With fewer than 100 eigenvalues the last one ends the range; with fewer than 22 the range
    starts at 1, because from 11 it would not span a factor of two.
    """
    last = min(FIT_LAST, count)
    return (FIT_FIRST if last >= 2 * FIT_FIRST else 1), last


def decay_rate(eigenvalues: Tensor) -> Tensor | None:
    """Return minus the slope of log λ_i on log i over the ranks i of `fit_range`, each weighted by 1/i.

    The weights are those of the code of α-ReQ, which follows Stringer et al. 2019: they give every octave of ranks
    the same weight.

    Args:
        eigenvalues: Positive eigenvalues in descending order, (k,).

    Returns:
        α, 0-d; None for fewer than three eigenvalues.
    """
    if len(eigenvalues) < FEWEST:
        return None
    first, last = fit_range(len(eigenvalues))
    ranks = torch.arange(first, last + 1, dtype=eigenvalues.dtype, device=eigenvalues.device)
    x, y = ranks.log(), eigenvalues[first - 1 : last].log()
    shares = ranks.reciprocal() / ranks.reciprocal().sum()
    x = x - shares @ x
    return -(shares * x * y).sum() / (shares * x.square()).sum()


def participation(covariance: Tensor) -> Tensor | None:
    """Return (tr Σ)²/‖Σ‖_F² of a covariance (m, m) of any scale, None if it is zero."""
    trace = covariance.diagonal().sum()
    return (trace / torch.linalg.matrix_norm(covariance)).square() if bool(trace.detach() > 0) else None


@dataclass(frozen=True)
class Line:
    """Line y = intercept + slope · x; `r2` is the share of the variance of y that it explains."""

    slope: float
    intercept: float
    r2: float


def line_through(points: Sequence[tuple[float, float]]) -> Line | None:
    """Return the line of least squares through points (x, y).

    None for fewer than three points, or if all x or all y are equal up to rounding.
    """
    if len(points) < FEWEST:
        return None
    x, y = (np.asarray(values, dtype=np.float64) for values in zip(*points, strict=True))
    away, up = (values - values.mean() for values in (x, y))
    if any(np.abs(moved).max() <= len(x) * EPSILON * np.abs(v).max() for moved, v in ((away, x), (up, y))):
        return None
    slope = float(away @ up / (away @ away))
    rest = up - slope * away
    return Line(slope, float(y.mean() - slope * x.mean()), float(1 - rest @ rest / (up @ up)))


def _smaller(rows: Tensor) -> Tensor:
    """Return ZᵀZ or ZZᵀ of rows (n, d), the smaller one."""
    return rows @ rows.T if rows.shape[0] < rows.shape[1] else rows.T @ rows


def _away(X: Array) -> Tensor:
    return near_one(centred(to_rows(X)))


def _defined(value: Tensor | None, reason: str) -> Tensor:
    if value is None:
        raise DataError(f"X: {reason}")
    return value

"""Noise of a series of checkpoints: its scale and the correlation of neighbours, both insensitive to a few changes.

A second difference compares a value with the line through its two neighbours, so that a trend that is linear in x, or
changes at a few checkpoints, hardly enters: their median size gives the scale σ. The coefficient φ of the AR(1) model
e_i = φ e_(i−1) + noise, in the order of the checkpoints, follows from the lag-one correlation of the residuals of a
line and the few kinks or jumps that fit best.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.signal import lfilter

COEFFICIENTS = np.linspace(0, 0.9, 10)
"""Coefficients φ of the noise model that are distinguished."""

CONFIDENCE = 0.8
"""Confidence of the upper limit of φ, by which the errors of tests are computed."""

MEDIAN_OF_NORMAL = 0.6744897501960817
"""Median size of a standard normal number."""

LEAST_SHARE = 1e-3
"""Least σ, as a share of the range of the values: finer changes are not resolved."""

LOCAL, LOCAL_STRIDE, LOCAL_EXCESS = 21, 7, 1.5
"""Number of second differences of a local scale, and their distance; it counts where it exceeds σ by the factor."""

CANDIDATES = 120
"""Largest number of positions at which kinks and jumps are removed before the correlation is computed."""

CLIPPED = 3.0
"""Size of residuals, relative to their median size as a σ, beyond which they do not add to the correlation."""


@dataclass(frozen=True)
class Noise:
    """Estimated noise of m series on one grid of n checkpoints.

    Attributes:
        scale: Scale (m, n) of second differences around each checkpoint, as the σ of independent noise.
        limit: Index (m,) in `COEFFICIENTS` of an upper limit of φ.
    """

    scale: np.ndarray
    limit: np.ndarray


class NoiseModel:
    """Estimates of noise on one grid of checkpoints; the upper limit of φ comes from a simulation on this grid.

    Args:
        x: Positions (n,).
        seed: Seed of the simulation.
        draws: Number of simulated series for each coefficient.
    """

    def __init__(self, x: np.ndarray, *, seed: int = 0, draws: int = 500) -> None:
        self.x = x
        self._weight, self._size = _weights(x)
        self._trend, self._changes = contrasts(x, 1, CANDIDATES)
        centres = np.arange(0, len(x) - LOCAL - 1, LOCAL_STRIDE) + 1 + LOCAL // 2
        self._nearest = np.abs(np.subtract.outer(np.arange(len(x)), centres)).argmin(axis=1) if len(centres) else None
        self._removed = int(np.clip(len(x) // 20, 1, 3))
        correlations = [
            self.correlation(simulate(np.random.default_rng(seed), coefficient, draws, len(x)))
            for coefficient in COEFFICIENTS
        ]
        self._lowest = np.maximum.accumulate([np.quantile(each, 1 - CONFIDENCE) for each in correlations])

    @cached_property
    def scales(self) -> np.ndarray:
        """Scale of second differences for each of `COEFFICIENTS` and noise of σ = 1, as a root mean square."""
        phi, weight = COEFFICIENTS[:, None], self._weight
        variance = 1 + weight**2 + (1 - weight) ** 2 - 2 * phi + 2 * weight * (1 - weight) * phi**2
        return np.sqrt((variance / self._size**2).mean(axis=1))

    def estimate(self, values: np.ndarray) -> Noise:
        """Estimate the noise of series (m, n)."""
        ends = values[:, :-2] * self._weight + values[:, 2:] * (1 - self._weight)
        differences = np.abs(values[:, 1:-1] - ends) / self._size
        scale = np.maximum(_median_size(differences, values), LEAST_SHARE * np.ptp(values, axis=1))
        around = np.repeat(scale[:, None], len(self.x), axis=1)
        if self._nearest is not None:
            windows = np.lib.stride_tricks.sliding_window_view(differences, LOCAL, axis=1)[:, ::LOCAL_STRIDE]
            local = np.median(windows, axis=2) / MEDIAN_OF_NORMAL
            around = np.maximum(around, local[:, self._nearest] / LOCAL_EXCESS)
        limit = np.searchsorted(self._lowest, self.correlation(values), side="right")
        return Noise(around, np.minimum(limit, len(COEFFICIENTS) - 1))

    def correlation(self, values: np.ndarray) -> np.ndarray:
        """Return the lag-one correlation of series (m, n) without a line and the changes that fit best."""
        rest = values - (values @ self._trend) @ self._trend.T
        for _ in range(self._removed):
            sizes = rest @ self._changes.T
            largest = np.abs(sizes).argmax(axis=1)
            rest = rest - np.take_along_axis(sizes, largest[:, None], axis=1) * self._changes[largest]
        bound = CLIPPED * np.median(np.abs(rest), axis=1, keepdims=True) / MEDIAN_OF_NORMAL
        rest = np.clip(rest, -bound, bound)
        square = (rest**2).sum(axis=1)
        return (rest[:, 1:] * rest[:, :-1]).sum(axis=1) / np.where(square > 0, square, 1)


def contrasts(x: np.ndarray, degree: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return tests for kinks and jumps at positions x (n,) in a trend that is a polynomial in x.

    Args:
        x: Positions (n,).
        degree: Degree of the trend.
        most: Largest number of points at which jumps are tested, and the same for kinks.

    Returns:
        Orthonormal columns (n, degree + 1) of the trend; and unit vectors (tests, n) orthogonal to it.
    """
    count = len(x)
    scaled = (x - x.mean()) / (np.ptp(x) / 2)
    trend, _ = np.linalg.qr(np.vander(scaled, degree + 1))
    splits = np.unique(np.linspace(1, count - 1, min(count - 1, most)).round().astype(int))
    jumps = (np.arange(count) >= splits[:, None]).astype(float)
    kinks = np.maximum(scaled - scaled[splits[:-1], None], 0) if degree else np.empty((0, count))
    columns = np.vstack([jumps, kinks])
    columns -= (columns @ trend) @ trend.T
    sizes = np.linalg.norm(columns, axis=1)
    usable = sizes > 1e-6
    return trend, columns[usable] / sizes[usable, None]


def simulate(generator: np.random.Generator, coefficient: float, series: int, checkpoints: int) -> np.ndarray:
    """Return stationary AR(1) noise of σ = 1, shape (series, checkpoints)."""
    white = generator.standard_normal((series, checkpoints))
    white[:, 1:] *= np.sqrt(1 - coefficient**2)
    return np.asarray(lfilter([1.0], [1.0, -coefficient], white, axis=1))


def _median_size(differences: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return σ from sizes of differences.

    Differences that are exactly zero, as of a saturated accuracy, do not count; and of values that repeat, such as
    counts divided by the number of samples, σ is at least half of the smallest gap between them.
    """
    scale = np.median(differences, axis=1) / MEDIAN_OF_NORMAL
    for row in np.flatnonzero((differences == 0).mean(axis=1) > 0.1):
        moving = differences[row][differences[row] > 0]
        enough = len(moving) >= max(8, differences.shape[1] / 4)
        scale[row] = np.median(moving) / MEDIAN_OF_NORMAL if enough else 0
        gaps = np.diff(np.unique(values[row]))
        if len(gaps) > 1:
            scale[row] = max(scale[row], gaps.min() / 2)
    return scale


def _weights(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    weight = (x[2:] - x[1:-1]) / (x[2:] - x[:-2])
    return weight, np.sqrt(1 + weight**2 + (1 - weight) ** 2)

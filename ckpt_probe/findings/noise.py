"""Noise of a series of checkpoints: its scale and the correlation of neighbours, both estimated beside a few changes.

The residuals of a line and the few jumps, ramps or kinks that fit best have the noise of the AR(1) model
e_i = φ e_(i−1) + innovation, in the order of the checkpoints: their lag-one correlation gives an upper limit of φ, and
their innovations under this φ the scale. Where a trend is curved, these residuals are too large; second differences,
which compare a value with the line through its two neighbours, then limit the scale by their median size.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.signal import lfilter

COEFFICIENTS = np.linspace(0, 0.9, 10)
"""Coefficients φ of the noise model that are distinguished."""

INNOVATIONS = np.sqrt(1 - COEFFICIENTS**2)
"""Scale of the innovations for each of `COEFFICIENTS` and noise of σ = 1."""

CONFIDENCE = 0.8
"""Confidence of the upper limit of φ, by which the errors of tests are computed."""

MEDIAN_OF_NORMAL = 0.6744897501960817
"""Median size of a standard normal number."""

OF_CURVED = 2.0
"""Scale by innovations that is allowed, relative to that by n second differences: 1 + this / √n."""

LEAST_SHARE = 1e-3
"""Least σ, as a share of the range of the values: finer changes are not resolved."""

LOCAL, LOCAL_STRIDE, LOCAL_EXCESS = 21, 7, 1.5
"""Number of second differences of a local scale, and their distance; it counts where it exceeds σ by the factor."""

CANDIDATES = 60
"""Number of positions at which a ramp of one width, or a kink, may begin; a jump may at twice as many."""

CLIPPED = 3.0
"""Size of residuals, relative to their median size as a σ, beyond which they do not add to the correlation."""


@dataclass(frozen=True)
class Noise:
    """Estimated noise of m series on one grid of n checkpoints.

    Attributes:
        scale: Scale (m, n) of the innovations around each checkpoint, for the coefficient of `limit`.
        limit: Index (m,) in `COEFFICIENTS` of an upper limit of φ.
        second: Scale (m, n) by second differences alone, which a smooth trend hardly enters.
    """

    scale: np.ndarray
    limit: np.ndarray
    second: np.ndarray


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
        self._trend, self._changes = _changes(x)
        centres = np.arange(0, len(x) - LOCAL - 1, LOCAL_STRIDE) + 1 + LOCAL // 2
        self._nearest = np.abs(np.subtract.outer(np.arange(len(x)), centres)).argmin(axis=1) if len(centres) else None
        self._removed = int(np.clip(len(x) // 20, 1, 3))
        self._lowest = np.zeros(len(COEFFICIENTS))
        for index, coefficient in enumerate(COEFFICIENTS):
            noise = simulate(np.random.default_rng(seed), coefficient, draws, len(x))
            self._lowest[index] = np.quantile(_correlation(self._residuals(noise)), 1 - CONFIDENCE)
        self._lowest = np.maximum.accumulate(self._lowest)

    @cached_property
    def _second(self) -> np.ndarray:
        """Scale of second differences for each of `COEFFICIENTS` and noise of σ = 1, as a root mean square."""
        phi, weight = COEFFICIENTS[:, None], self._weight
        variance = 1 + weight**2 + (1 - weight) ** 2 - 2 * phi + 2 * weight * (1 - weight) * phi**2
        return np.sqrt((variance / self._size**2).mean(axis=1))

    def estimate(self, values: np.ndarray) -> Noise:
        """Estimate the noise of series (m, n)."""
        count, rest = len(self.x), self._residuals(values)
        limit = np.searchsorted(self._lowest, _correlation(rest), side="right").clip(max=len(COEFFICIENTS) - 1)
        phi = COEFFICIENTS[limit]
        products, ends = (rest[:, 1:] * rest[:, :-1]).sum(axis=1), rest[:, 0] ** 2 + rest[:, -1] ** 2
        squares = (rest**2).sum(axis=1)
        innovations = squares + phi**2 * (squares - ends) - 2 * phi * products
        scale = np.sqrt(innovations.clip(min=0) / (count - 2 - 2 * self._removed))
        to_innovations = (INNOVATIONS / self._second)[limit]
        middle = values[:, :-2] * self._weight + values[:, 2:] * (1 - self._weight)
        differences = np.abs(values[:, 1:-1] - middle) / self._size
        least = _least(differences, values)
        second = np.maximum(_median_size(differences), least) * to_innovations
        scale = np.maximum(np.minimum(scale, (1 + OF_CURVED / np.sqrt(count)) * second), least)
        local = np.zeros((1, 1))
        if self._nearest is not None:
            windows = np.lib.stride_tricks.sliding_window_view(differences, LOCAL, axis=1)[:, ::LOCAL_STRIDE]
            local = np.median(windows, axis=2) / MEDIAN_OF_NORMAL * to_innovations[:, None]
            local = local[:, self._nearest] / LOCAL_EXCESS
        flat = np.zeros((1, count))
        return Noise(np.maximum(scale[:, None] + flat, local), limit, np.maximum(second[:, None] + flat, local))

    def _residuals(self, values: np.ndarray) -> np.ndarray:
        """Return series (m, n) without a line and the changes that fit best."""
        rest = values - (values @ self._trend) @ self._trend.T
        for _ in range(self._removed):
            sizes = rest @ self._changes.T
            largest = np.abs(sizes).argmax(axis=1)
            rest = rest - np.take_along_axis(sizes, largest[:, None], axis=1) * self._changes[largest]
        return rest


def _changes(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return orthonormal columns (n, 2) of a line, and unit vectors (k, n) of changes, less their fit by the line.

    A change is a ramp between two checkpoints: a jump between neighbours, or a kink where it goes on to the last one.
    """
    count = len(x)
    strides, width = {1: max(1, count // CANDIDATES // 2), count: max(1, count // CANDIDATES)}, 2
    while width < count:
        strides[width] = max(1, count // CANDIDATES, width // 4)
        width = max(width + 1, int(1.5 * width))
    pairs = {
        (start, min(start + width, count - 1))
        for width, stride in strides.items()
        for start in range(0, count - 1, stride)
    }
    starts, ends = np.array(sorted(pairs)).T
    ramps = np.clip((x - x[starts, None]) / (x[ends] - x[starts])[:, None], 0, 1)
    trend, _ = np.linalg.qr(np.c_[np.ones(count), (x - x.mean()) / np.ptp(x)])
    ramps -= (ramps @ trend) @ trend.T
    sizes = np.linalg.norm(ramps, axis=1, keepdims=True)
    return trend, (ramps / sizes)[sizes[:, 0] > 1e-6]


def contrasts(x: np.ndarray, degree: int, most: int, coefficient: float = 0.0) -> np.ndarray:
    """Return tests for kinks and jumps at positions x (…, n) in a trend that is a polynomial in x.

    They are generalised least squares under AR(1) noise: products of the vectors with a series have the standard error
    of the innovations.

    Args:
        x: Positions (…, n).
        degree: Degree of the trend.
        most: Largest number of points at which jumps are tested, and the same for kinks.
        coefficient: Coefficient φ of the noise.

    Returns:
        Vectors (…, tests, n) orthogonal to the trend, of length 1 for φ = 0, and zero where it describes the change.
    """
    count = x.shape[-1]
    scaled = (x - x.mean(axis=-1, keepdims=True)) / (np.ptp(x, axis=-1, keepdims=True) / 2)
    trend, _ = np.linalg.qr(_whitened(scaled[..., None] ** np.arange(degree + 1), coefficient))
    splits = np.unique(np.linspace(1, count - 1, min(count - 1, most)).round().astype(int))
    jumps = np.broadcast_to(np.arange(count)[:, None] >= splits, (*x.shape, len(splits))).astype(float)
    kinks = np.maximum(scaled[..., :, None] - scaled[..., None, splits[:-1]], 0) if degree else jumps[..., :0]
    columns = _whitened(np.concatenate([jumps, kinks], axis=-1), coefficient)
    columns -= trend @ (np.swapaxes(trend, -1, -2) @ columns)
    sizes = np.linalg.norm(columns, axis=-2, keepdims=True)
    columns /= np.where(sizes > 1e-6, sizes, np.inf)
    # The transpose of the whitening, so that the vectors apply to a series as it is.
    vectors = columns.copy()
    vectors[..., :-1, :] -= coefficient * columns[..., 1:, :]
    vectors[..., 0, :] += (np.sqrt(1 - coefficient**2) - 1) * columns[..., 0, :]
    return np.swapaxes(vectors, -1, -2)


def _whitened(columns: np.ndarray, coefficient: float) -> np.ndarray:
    """Return the innovations of columns (…, n, k) under AR(1), the first on the scale of the others."""
    result = columns.copy()
    result[..., 1:, :] -= coefficient * columns[..., :-1, :]
    result[..., 0, :] *= np.sqrt(1 - coefficient**2)
    return result


def _correlation(rest: np.ndarray) -> np.ndarray:
    """Return the lag-one correlation of residuals (m, n)."""
    bound = CLIPPED * np.median(np.abs(rest), axis=1, keepdims=True) / MEDIAN_OF_NORMAL
    rest = np.clip(rest, -bound, bound)
    square = (rest**2).sum(axis=1)
    return (rest[:, 1:] * rest[:, :-1]).sum(axis=1) / np.where(square > 0, square, 1)


def simulate(generator: np.random.Generator, coefficient: float, series: int, checkpoints: int) -> np.ndarray:
    """Return stationary AR(1) noise of σ = 1, shape (series, checkpoints)."""
    white = generator.standard_normal((series, checkpoints))
    white[:, 1:] *= np.sqrt(1 - coefficient**2)
    return np.asarray(lfilter([1.0], [1.0, -coefficient], white, axis=1))


def _median_size(differences: np.ndarray) -> np.ndarray:
    """Return σ from sizes of differences; those that are exactly zero, as of a saturated accuracy, do not count."""
    scale = np.median(differences, axis=1) / MEDIAN_OF_NORMAL
    for row in np.flatnonzero(_repeat(differences)):
        moving = differences[row][differences[row] > 0]
        enough = len(moving) >= max(8, differences.shape[1] / 4)
        scale[row] = np.median(moving) / MEDIAN_OF_NORMAL if enough else 0
    return scale


def _least(differences: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the least σ: a share of the range; of values that repeat, half of the smallest gap between them."""
    least = LEAST_SHARE * np.ptp(values, axis=1)
    for row in np.flatnonzero(_repeat(differences)):
        gaps = np.diff(np.unique(values[row]))
        if len(gaps) > 1:
            least[row] = max(least[row], gaps.min() / 2)
    return least


def _repeat(differences: np.ndarray) -> np.ndarray:
    return (differences == 0).mean(axis=1) > 0.1


def _weights(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    weight = (x[2:] - x[1:-1]) / (x[2:] - x[:-2])
    return weight, np.sqrt(1 + weight**2 + (1 - weight) ** 2)

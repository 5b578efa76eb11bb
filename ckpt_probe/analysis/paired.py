"""Paired differences between two groups of runs: intervals, tests, equivalence, and Holm's correction."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ckpt_probe.errors import UsageError

METHODS = ("bootstrap", "t")
FEWEST_PAIRS = 3
RESOLVED, ROUNDING = 1e-5, 1e-14
"""Least step of a grid of values, as a share of their range; and relative difference of values that are equal."""


@dataclass(frozen=True)
class Interval:
    """Method by which the mean of paired differences is bounded.

    Attributes:
        method: "bootstrap", or "t" for Student's interval, which assumes normal differences.
        confidence: Confidence of the interval, between 0 and 1.
        resamples: Number of resamples of the bootstrap.
        seed: Seed of the bootstrap.
    """

    method: str = "bootstrap"
    confidence: float = 0.95
    resamples: int = 9999
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"`method={self.method!r}`: expected {' or '.join(METHODS)}")
        if not 0 < self.confidence < 1:
            raise UsageError(f"`confidence={self.confidence}`: expected a number between 0 and 1, such as 0.95")
        if self.resamples < 100:
            raise UsageError(f"`resamples={self.resamples}`: expected at least 100")

    def bounds(self, differences: Sequence[float]) -> tuple[float, float] | None:
        """Compute an interval of the mean of differences.

        The bootstrap takes the percentile interval of resampled means, expanded for small samples (Hesterberg 2015,
        "What Teachers Should Know About the Bootstrap"): for normal differences it is as wide as Student's. Without
        the expansion, percentile and BCa intervals of 5 normal differences cover 0.82 instead of 0.95, and BCa is
        undefined if all differences are equal.

        Args:
            differences: One difference for each pair.

        Returns:
            Lower and upper end, both equal to the difference if all are equal; None for fewer than 3 differences.
        """
        from scipy import stats

        values = np.asarray(differences, dtype=np.float64)
        if len(values) < FEWEST_PAIRS:
            return None
        if np.ptp(values) == 0:
            return float(values[0]), float(values[0])
        if self.method == "t":
            # The upper tail is exact near 1, where 0.5 + confidence / 2 rounds to 1 before the confidence does.
            half = float(stats.t.isf((1 - self.confidence) / 2, len(values) - 1) * stats.sem(values))
            return float(values.mean()) - half, float(values.mean()) + half
        interval = stats.bootstrap(
            (values,),
            np.mean,
            n_resamples=self.resamples,
            confidence_level=expanded(self.confidence, len(values)),
            method="percentile",
            # This older name of the keyword is accepted by every scipy from 1.12 on.
            random_state=np.random.default_rng(self.seed),  # pyright: ignore[reportCallIssue]
        ).confidence_interval
        return float(interval.low), float(interval.high)

    def coverage_at_most(self, pairs: int) -> float | None:
        """Return the largest possible coverage of the bootstrap, if it is less than the confidence; else None.

        A resampled mean lies between the smallest and the largest difference, and with a probability of 2^(1−n) all n
        of them lie on one side of their median.
        """
        bound = 1 - 2.0 ** (1 - pairs)
        return bound if self.method == "bootstrap" and pairs >= FEWEST_PAIRS and bound < self.confidence else None


def expanded(confidence: float, pairs: int) -> float:
    """Return the level at which the percentile interval of n normal differences is as wide as Student's."""
    from scipy import stats

    quantile = math.sqrt(pairs / (pairs - 1)) * stats.t.isf((1 - confidence) / 2, pairs - 1)
    return float(1 - 2 * stats.norm.sf(quantile))


def grain_of(values: Iterable[float]) -> float:
    """Return the step of which all values are multiples, apart from an offset, such as 1/N of an accuracy.

    It is the approximate greatest common divisor of their gaps; 0 for fewer than three different values, or if it is
    less than 2·10⁻⁵ of their range.
    """
    different = sorted(set(values))
    if len(different) < 3:
        return 0.0
    least, grain = RESOLVED * (different[-1] - different[0]), 0.0
    for low, high in pairwise(different):
        rest = high - low
        if rest <= ROUNDING * max(abs(low), abs(high)):
            continue
        if rest <= least:
            return 0.0
        while rest > least:
            grain, rest = rest, abs(math.remainder(grain, rest))
    return grain if grain > 2 * least else 0.0


def standard_error(differences: np.ndarray, grain: float = 0.0) -> np.ndarray:
    """Return the standard error of the mean of differences (n, …), whose deviation is at least half a grain.

    Without this bound, a few accuracies that differ by the same number of samples would have no error at all.
    """
    deviation = differences.std(axis=0, ddof=1)
    return np.asarray(np.maximum(deviation, grain / 2) / math.sqrt(len(differences)))


def difference_p(differences: Sequence[float], grain: float = 0.0) -> float:
    """Return the two-sided p-value of Student's paired test that the mean of differences is 0; 1 for fewer than 3.

    Args:
        differences: One difference for each pair.
        grain: Step of which the values are multiples, as `grain_of` returns it.
    """
    from scipy import stats

    values = np.asarray(differences, dtype=np.float64)
    if len(values) < FEWEST_PAIRS or not values.any():
        return 1.0
    error = float(standard_error(values, grain))
    return 0.0 if error == 0 else float(2 * stats.t.sf(abs(values.mean()) / error, len(values) - 1))


def equivalence_p(differences: Sequence[float], margin: float, grain: float = 0.0) -> float:
    """Return the p-value of two one-sided tests that the mean of differences lies beyond a margin; 1 for fewer than 3.

    Args:
        differences: One difference for each pair.
        margin: The margin on either side of 0.
        grain: Step of which the values are multiples, as `grain_of` returns it.
    """
    from scipy import stats

    values = np.asarray(differences, dtype=np.float64)
    distance = margin - abs(float(values.mean())) if len(values) else 0.0
    if len(values) < FEWEST_PAIRS or distance <= 0:
        return 1.0
    error = float(standard_error(values, grain))
    return 0.0 if error == 0 else float(stats.t.sf(distance / error, len(values) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Holm's procedure for the number of tests."""
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted

"""Statistics of groups of paired runs: intervals, tests of a difference and of equivalence, bands over the loss."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.progress import Progress

METHODS = ("bootstrap", "t")
FEWEST_PAIRS = 3
RESOLVED, ROUNDING = 1e-5, 1e-14
"""Least step of a grid of values, as a share of their range; and relative difference of values that are equal."""

LEVELS = 25
"""Number of losses at which groups are compared."""

INDEPENDENT = 3.0
"""Share of the variance that is drawn independently for each loss, times the number of pairs."""

BLOCK = 500
"""Number of resamples that are drawn at a time."""


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

    def bounds(self, differences: Sequence[float], grain: float = 0.0) -> tuple[float, float] | None:
        """Compute an interval of the mean of differences.

        The bootstrap takes the percentile interval of resampled means, expanded for small samples (Hesterberg 2015,
        "What Teachers Should Know About the Bootstrap"): for normal differences it is as wide as Student's. Without
        the expansion, percentile and BCa intervals of 5 normal differences cover 0.82 instead of 0.95, and BCa is
        undefined if all differences are equal.

        Args:
            differences: One difference for each pair.
            grain: Step of which the values are multiples, as `grain_of` returns it. Differences that deviate by less
                than half a step have Student's interval with this deviation, as in `difference_p`.

        Returns:
            Lower and upper end, both equal to the difference if all are equal and the grain is 0, or all are 0; None
            for fewer than 3 differences.
        """
        from scipy import stats

        values = np.asarray(differences, dtype=np.float64)
        if len(values) < FEWEST_PAIRS:
            return None
        coarse = bool(values.any()) and float(values.std(ddof=1)) < grain / 2
        if np.ptp(values) == 0 and not coarse:
            return float(values[0]), float(values[0])
        if self.method == "t" or coarse:
            # The upper tail is exact near 1, where 0.5 + confidence / 2 rounds to 1 before the confidence does.
            quantile = stats.t.isf((1 - self.confidence) / 2, len(values) - 1)
            half = float(quantile * standard_error(values, grain if coarse else 0.0))
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


@dataclass(frozen=True)
class Curves:
    """A metric by loss.

    Attributes:
        levels: Losses (k,) in descending order.
        values: Values (k,) of each run, by group and name.
    """

    levels: np.ndarray
    values: Mapping[str, Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Band:
    """A band of mean differences that holds for all k losses together.

    Attributes:
        low: Lower ends (k,).
        high: Upper ends (k,).
        clearest: Index of the loss with the largest difference relative to its standard error.
        p_value: Probability of a difference this clear at any loss if there is no difference.
    """

    low: np.ndarray
    high: np.ndarray
    clearest: int
    p_value: float


def curves_by_loss(
    courses: Mapping[str, Mapping[str, Mapping[int, Mapping[str, Any]]]], metric: str, progress: Progress
) -> Curves:
    """Return a metric of every run as a function of the running minimum of its loss, over the common range.

    Args:
        courses: Records by group, run and step, with `loss` and the metric.
        metric: Name of the metric.
        progress: Receives a message about runs whose loss rises in between.

    Raises:
        DataError: If a run has fewer than two steps with loss and metric, or the runs have no loss in common.
    """
    reached: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
    rising = 0
    for group, runs in courses.items():
        for name, course in runs.items():
            pairs = [(record.get("loss"), record.get(metric)) for record in course.values()]
            known = np.array([pair for pair in pairs if None not in pair], dtype=float).reshape(-1, 2)
            if len(known) < 2:
                raise DataError(f"{group}: {name}: {len(known)} steps with loss and {metric}; expected at least two")
            lowest = np.minimum.accumulate(known[:, 0])
            rising += bool((known[:, 0] > lowest).any())
            levels, first = np.unique(-lowest, return_index=True)
            reached[group, name] = levels, known[first, 1]
    start = max(levels[0] for levels, _ in reached.values())
    stop = min(levels[-1] for levels, _ in reached.values())
    if start >= stop:
        raise DataError(f"{metric}: the runs have no loss in common")
    if rising:
        progress.message(f"the loss of {rising} of {len(reached)} runs is not monotone; its running minimum counts")
    grid = np.linspace(start, stop, LEVELS)
    if stop < 0:
        grid = -np.geomspace(-start, -stop, LEVELS)
    values: dict[str, dict[str, np.ndarray]] = {group: {} for group in courses}
    for (group, name), (levels, numbers) in reached.items():
        values[group][name] = np.interp(grid, levels, numbers)
    return Curves(-grid, values)


def band(differences: np.ndarray, confidence: float, resamples: int, seed: int, grain: float = 0.0) -> Band:
    """Return the simultaneous band of the mean of paired differences by loss.

    The critical value is the quantile of the largest |mean| / standard error over the losses, by a bootstrap over
    seeds: each resample has n runs, which are normal combinations of the observed differences. Of few seeds, the
    correlation of different losses is uncertain; so a share of their variance is drawn independently.

    Args:
        differences: Differences (n, k) of n ≥ 3 pairs at k losses.
        confidence: Confidence of the band.
        resamples: Number of resamples.
        seed: Seed of the bootstrap.
        grain: Step of which the values are multiples, as `grain_of` returns it.
    """
    count = len(differences)
    mean = differences.mean(axis=0)
    error = standard_error(differences, grain)
    error = np.maximum(error, 1e-12 * float(np.abs(differences).max()))
    share = min(1.0, INDEPENDENT / count)
    rest = (differences - mean) / (np.where(error > 0, error, 1) * np.sqrt(count * (count - 1)))
    generator = np.random.default_rng(seed)
    largest = np.empty(resamples)
    for start in range(0, resamples, BLOCK):
        size = min(BLOCK, resamples - start)
        together = generator.standard_normal((size, count, count)) @ rest
        apart = generator.standard_normal((size, count, differences.shape[1]))
        drawn = np.sqrt(1 - share) * together + np.sqrt(share / count) * apart
        errors = drawn.std(axis=1, ddof=1) / np.sqrt(count)
        largest[start : start + size] = (np.abs(drawn.mean(axis=1)) / np.maximum(errors, 1e-300)).max(axis=1)
    ratio = np.abs(mean) / np.where(error > 0, error, 1)
    half = float(np.quantile(largest, confidence)) * error
    p_value = float(1 + (largest >= ratio.max()).sum()) / (1 + resamples)
    return Band(mean - half, mean + half, int(ratio.argmax()), p_value)

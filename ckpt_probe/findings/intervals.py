"""Narrowest intervals in which a series departs from a line or a constant, with a simulated critical value.

The idea is that of Narrowest Significance Pursuit (Fryzlewicz, arXiv 2009.05431): every interval of a family is
tested, and each reported one contains a change, with one family-wise error for all of them. Here the tests are kinks
and jumps at points of the interval, relative to their standard errors under AR(1) noise: of a line by generalised least
squares, of a constant by plain ones and second differences, which respond better to a level that moves gradually.
The coefficient φ is replaced by an upper limit, and the critical value is the largest over φ of those simulated on the
same grid with the same estimates.
"""

from collections.abc import Iterable
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ckpt_probe.findings.noise import COEFFICIENTS, INNOVATIONS, Noise, NoiseModel, contrasts, simulate

SHORTEST, MOST_SPLITS = 4, 9
"""Number of checkpoints of the shortest interval, and the number of its points at which changes are tested."""

SIMULATED = (0.0, 0.25, 0.5, 0.7, 0.8)
"""Coefficients φ under which the critical value is simulated."""

DRAWS, SEED = 2000, 1
"""Number of simulated series for each coefficient, half of it on grids of more than 200 checkpoints, and their seed."""

HEIGHTS, POWER, POWER_DRAWS = np.geomspace(1, 256, 17), 0.9, 100
"""Jumps in σ that are planted to find the one that is reported with a probability of `POWER`, and series for each."""

MUCH_NARROWER = 2 / 3
"""Largest length, relative to that of the first significant interval, of the one that replaces it as the onset."""

TAIL = 0.05
"""Probability beyond which the simulated distribution is extrapolated by a generalised Pareto tail."""


class Interval(NamedTuple):
    """Index of the first checkpoint of an interval, and index after its last one."""

    start: int
    stop: int


class Family:
    """All tested intervals of one grid for one null trend, and the distribution of the largest statistic under it.

    Args:
        model: Model of the noise on the grid.
        degree: Degree of the trend in which there is no change: 0 for a constant, 1 for a line.
    """

    def __init__(self, model: NoiseModel, degree: int) -> None:
        self.model = model
        self.intervals = spans(len(model.x))
        self._degree = degree
        self._tests: dict[int, list[tuple[list[int], np.ndarray]]] = {}
        self._nulls: list[tuple[np.ndarray, tuple[float, float, float]]] = []
        self._reached: dict[int, np.ndarray] = {}

    def learn(self, values: np.ndarray, noise: Noise) -> None:
        """Add simulated series (m, n) without a change, under one coefficient, to the distribution."""
        null = np.sort(self.statistics(values.astype(np.float32), noise).max(axis=0))
        self._nulls.append((null, _tail(null)))

    def statistics(self, values: np.ndarray, noise: Noise) -> np.ndarray:
        """Return the largest statistic of each interval, shape (intervals, m), of series (m, n) and their noise."""
        result = np.empty((len(self.intervals), len(values)), dtype=values.dtype)
        for limit in np.unique(noise.limit):
            members = np.flatnonzero(noise.limit == limit)
            columns = np.ascontiguousarray(values[members].T)
            largest = []
            for starts, tests in self._tests_of(int(limit)):
                windows = sliding_window_view(columns, tests.shape[-1], axis=0)[starts]
                sizes = tests.astype(values.dtype, copy=False) @ np.swapaxes(windows, 1, 2)
                largest.append(np.abs(sizes, out=sizes).max(axis=1))
            result[:, members] = np.concatenate(largest)
        middles = [(each.start + each.stop) // 2 for each in self.intervals]
        scale = (noise.scale if self._degree else noise.second)[:, middles].T
        return result / np.where(scale > 0, scale, np.inf)

    def _tests_of(self, limit: int) -> list[tuple[list[int], np.ndarray]]:
        """Return starts (k,) and tests (k, tests, length) of the intervals of each length, for a coefficient φ."""
        if limit not in self._tests:
            self._tests[limit], coefficient = [], float(COEFFICIENTS[limit])
            for length, members in groupby(self.intervals, lambda each: each.stop - each.start):
                starts = [each.start for each in members]
                x = sliding_window_view(self.model.x, length)[starts]
                vectors = contrasts(x, self._degree, MOST_SPLITS, coefficient if self._degree else 0)
                if not self._degree:
                    distances = np.abs(np.subtract.outer(np.arange(length), np.arange(length)))
                    variances = (vectors @ coefficient**distances * vectors).sum(axis=-1).mean(axis=-1)
                    vectors = vectors * (INNOVATIONS[limit] / np.sqrt(variances))[:, None, None]
                self._tests[limit].append((starts, np.ascontiguousarray(vectors)))
        return self._tests[limit]

    def detectable(self, limit: int, critical: float) -> float:
        """Return the jump in the middle that is reported in 90 % of simulated series, for a scale of 1.

        The noise of each series is estimated with the jump in it, which takes a part of the jump for noise.

        Args:
            limit: Index of the coefficient φ of the series.
            critical: Critical value.
        """
        if limit not in self._reached:
            count, middle = len(self.model.x), len(self.model.x) // 2
            noise = simulate(np.random.default_rng(SEED), float(COEFFICIENTS[limit]), POWER_DRAWS, count)
            around = [each.start < middle < each.stop for each in self.intervals]
            reached = []
            for height in HEIGHTS:
                values = noise + height * (np.arange(count) >= middle)
                statistics = self.statistics(values, self.model.estimate(values))
                reached.append(np.quantile(statistics[around].max(axis=0), 1 - POWER))
            self._reached[limit] = np.maximum.accumulate(reached)
        reached = self._reached[limit]
        height = np.exp(np.interp(np.log(critical), np.log(reached), np.log(HEIGHTS)))
        return float(height * max(1.0, critical / reached[-1]) / INNOVATIONS[limit])

    def p_value(self, largest: float) -> float:
        """Return the probability of a largest statistic of at least this size without a change, at most over φ."""
        return max(_exceedance(largest, *each) for each in self._nulls)

    def critical(self, level: float) -> float:
        """Return the size that the largest statistic exceeds with a probability of at most `level` without a change."""
        return max(_quantile(level, *each) for each in self._nulls)


@lru_cache(maxsize=32)
def families(x: tuple[float, ...]) -> tuple[NoiseModel, Family, Family]:
    """Return the noise model of a grid, and its families for a constant and a line; simulated once for each grid."""
    model = NoiseModel(np.array(x))
    level, line = Family(model, 0), Family(model, 1)
    for coefficient in SIMULATED:
        values = simulate(np.random.default_rng(SEED), coefficient, DRAWS if len(x) <= 200 else DRAWS // 2, len(x))
        noise = model.estimate(values)
        level.learn(values, noise)
        line.learn(values, noise)
    return model, level, line


def spans(count: int) -> list[Interval]:
    """Return every tested interval, by length and start: each length is about 1.3 times the last."""
    lengths, length = [], float(SHORTEST)
    while length < count:
        lengths.append(int(length))
        length = max(length + 1, length * 1.3)
    result = []
    for length in [*lengths, count]:
        starts = [*range(0, count - length + 1, max(1, length // 5)), count - length]
        result += [Interval(start, start + length) for start in dict.fromkeys(starts)]
    return result


def narrowest(family: Family, statistics: np.ndarray, critical: float) -> list[Interval]:
    """Return disjoint significant intervals in order, the narrowest first chosen; of equals, the most significant.

    Args:
        family: The tested intervals.
        statistics: Their statistics (intervals,) for one series.
        critical: Critical value.
    """
    x = family.model.x
    significant = np.flatnonzero(statistics > critical)
    width = {index: x[family.intervals[index].stop - 1] - x[family.intervals[index].start] for index in significant}
    chosen: list[Interval] = []
    for index in sorted(significant, key=lambda index: (round(width[index], 9), -statistics[index])):
        new = family.intervals[index]
        if all(new.stop - 1 <= other.start or other.stop - 1 <= new.start for other in chosen):
            chosen.append(new)
    return sorted(chosen, key=lambda each: each.start)


def first_departure(significant: Iterable[Interval]) -> Interval | None:
    """Return the interval of the onset: the first to end, or the one after it if that is much narrower.

    One checkpoint more of the new level may suffice for an interval that begins just before it.
    """
    intervals = sorted(significant, key=lambda each: (each.stop, -each.start))
    if not intervals:
        return None
    first = intervals[0]
    narrow = min((each for each in intervals if each.stop <= first.stop + 1), key=_length)
    return narrow if _length(narrow) <= MUCH_NARROWER * _length(first) else first


def _length(interval: Interval) -> int:
    return interval.stop - 1 - interval.start


def _tail(null: np.ndarray) -> tuple[float, float, float]:
    """Return threshold, scale and shape of a generalised Pareto tail, by probability-weighted moments."""
    beyond = null[int(len(null) * (1 - TAIL)) :]
    excess = beyond - beyond[0]
    count = len(excess)
    first, second = excess.mean(), (excess * (count - 1 - np.arange(count))).sum() / (count * (count - 1))
    shape = float(np.clip(2 - first / max(first - 2 * second, 1e-12), 0, 0.5))
    return float(beyond[0]), float(first * (1 - shape)), shape


def _exceedance(size: float, null: np.ndarray, tail: tuple[float, float, float]) -> float:
    threshold, scale, shape = tail
    if size <= threshold:
        return float(1 + len(null) - np.searchsorted(null, size)) / (1 + len(null))
    excess = (size - threshold) / scale
    return max(TAIL * float(np.exp(-excess) if shape < 1e-6 else (1 + shape * excess) ** (-1 / shape)), 1e-300)


def _quantile(level: float, null: np.ndarray, tail: tuple[float, float, float]) -> float:
    threshold, scale, shape = tail
    if level >= TAIL:
        return float(np.quantile(null, 1 - level))
    ratio = level / TAIL
    return threshold + scale * float(-np.log(ratio) if shape < 1e-6 else (ratio**-shape - 1) / shape)

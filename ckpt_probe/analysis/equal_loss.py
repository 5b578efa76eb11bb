"""Metrics of runs at equal loss, and a band of the difference between two groups that holds for all losses together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckpt_probe.analysis.paired import standard_error
from ckpt_probe.errors import DataError
from ckpt_probe.progress import Progress

LEVELS = 25
"""Number of losses at which groups are compared."""

INDEPENDENT = 3.0
"""Share of the variance that is drawn independently for each loss, times the number of pairs."""

BLOCK = 500
"""Number of resamples that are drawn at a time."""


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

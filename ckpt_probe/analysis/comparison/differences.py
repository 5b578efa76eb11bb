"""Compare a group of runs with the baseline on one metric, and decide: different, equivalent or undecided."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ckpt_probe.analysis.comparison.groups import Measurement
from ckpt_probe.analysis.comparison.paired import (
    FEWEST_PAIRS,
    Curves,
    Interval,
    band,
    difference_p,
    equivalence_p,
    holm,
)
from ckpt_probe.errors import DataError

SMALL, LARGE = 1e-100, 1e100
"""Sizes between which the squares of numbers and their sums neither underflow nor overflow."""

Measurements = Mapping[str, Mapping[str, Measurement]]
"""Values of every run by group and name."""


@dataclass(frozen=True)
class Comparison:
    """One metric of one group, and its difference from the first group, the baseline.

    Attributes:
        metric: Name of the metric.
        group: Name of the group.
        split: Name of the split.
        step: Training step; None if the runs have different steps, or none.
        seeds: Number of runs of the group.
        mean: Mean over the runs.
        deviation: Standard deviation over the runs (n − 1); None for a single run.
        baseline: Name of the baseline.
        pairs: Number of runs with a run of the same name in the baseline.
        unpaired: Number of runs without one, in either group.
        difference: Mean over the pairs of the value of this group less that of the baseline.
        low: Lower end of the interval of the difference; None if `note` is set.
        high: Upper end of the interval.
        verdict: "different" or "equivalent" by tests at `confidence`, corrected for their number, else "undecided";
            "baseline" for the baseline.
        note: Reason why there is no interval.
        direction: "higher" or "lower" if the verdict is "different".
        collapse: "nearer" or "further": whether a different group is nearer to the value at collapse than the baseline.
        p_value: p-value of Student's paired test of no difference, adjusted by Holm for `tests`.
        margin: Margin of equivalence, in units of the metric.
        equivalence_p: p-value of two one-sided tests of a difference beyond the margin, adjusted for `tests`.
        tests: Number of tests of this call: metrics, groups and steps.
        differs_from: With every step compared, the first from which the verdict is "different" until the end.
        loss: With groups compared at equal loss, the loss at which the difference is clearest; `low` and `high` are the
            ends of a band that holds for all losses together.
        loss_low: With groups compared at equal loss, the lower end of the common range of the loss.
        loss_high: The upper end.
        interval: Method of the interval, "bootstrap" or "t".
        confidence: Requested confidence of the interval.
        coverage_at_most: Largest coverage of a resampled interval with so few pairs, if less than `confidence`.
        resamples: Number of resamples of the bootstrap.
        seed: Seed of the bootstrap.
    """

    metric: str
    group: str
    split: str
    step: int | None
    seeds: int
    mean: float
    deviation: float | None
    baseline: str
    pairs: int | None = None
    unpaired: int | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: str = "baseline"
    note: str | None = None
    direction: str | None = None
    collapse: str | None = None
    p_value: float | None = None
    margin: float | None = None
    equivalence_p: float | None = None
    tests: int | None = None
    differs_from: int | None = None
    loss: float | None = None
    loss_low: float | None = None
    loss_high: float | None = None
    interval: str = "bootstrap"
    confidence: float = 0.95
    coverage_at_most: float | None = None
    resamples: int | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Tested:
    """A comparison without its verdict.

    Attributes:
        comparison: The comparison.
        differences: Paired differences by level; None for the baseline.
        p_value: p-value of the test of no difference.
        grain: Step of which the values of the metric are multiples; 0 if unknown.
    """

    comparison: Comparison
    differences: np.ndarray | None = None
    p_value: float = 1.0
    grain: float = 0.0


def compare_at_step(
    metric: str, label: str, split: str, measurements: Measurements, interval: Interval, grain: float = 0.0
) -> Tested:
    """Return the comparison of a group with the first one, of the values of a metric at one step."""
    baseline = next(iter(measurements))
    values, reference = (
        {name: measurement.values[metric] for name, measurement in measurements[group].items()}
        for group in (label, baseline)
    )
    unit = _unit([*values.values(), *reference.values()])
    values, reference = ({name: value / unit for name, value in each.items()} for each in (values, reference))
    steps = {measurement.step for measurement in measurements[label].values()}
    comparison = _of_group((metric, label, split, baseline), values, reference, interval)
    comparison = replace(comparison, step=steps.pop() if len(steps) == 1 else None)
    if interval.method != "bootstrap":
        comparison = replace(comparison, resamples=None, seed=None)
    if label == baseline:
        return Tested(_times(comparison, unit))
    differences = [value - reference[name] for name, value in values.items() if name in reference]
    if differences:
        low, high = interval.bounds(differences, grain / unit) or (None, None)
        comparison = replace(comparison, difference=float(np.mean(differences)), low=low, high=high)
    of_group = measurements[label].values()
    at_collapse = [each.at_collapse[metric] for each in of_group if metric in each.at_collapse]
    if at_collapse:
        distances = [abs(float(np.mean(list(each.values()))) - at_collapse[0] / unit) for each in (values, reference)]
        comparison = replace(comparison, collapse="nearer" if distances[0] < distances[1] else "further")
    p_value = difference_p(differences, grain / unit)
    return Tested(_times(comparison, unit), np.array(differences)[:, None] * unit, p_value, grain)


def compare_at_loss(
    metric: str, label: str, split: str, curves: Curves, interval: Interval, grain: float = 0.0
) -> Tested:
    """Compare a group with the baseline at equal loss; its mean is that over the common range of the loss."""
    baseline = next(iter(curves.values))
    of_group, reference = curves.values[label], curves.values[baseline]
    means = {name: float(each.mean()) for name, each in of_group.items()}
    comparison = replace(
        _of_group((metric, label, split, baseline), means, reference, interval),
        loss_low=float(curves.levels[-1]),
        loss_high=float(curves.levels[0]),
    )
    if label == baseline:
        return Tested(comparison)
    differences = np.array([of_group[name] - reference[name] for name in of_group if name in reference])
    if len(differences) < FEWEST_PAIRS:
        return Tested(comparison, differences)
    simultaneous = band(differences, interval.confidence, interval.resamples, interval.seed, grain)
    clearest = simultaneous.clearest
    comparison = replace(
        comparison,
        coverage_at_most=None,  # the band is of normal combinations, which few pairs do not bound
        difference=float(differences[:, clearest].mean()),
        low=float(simultaneous.low[clearest]),
        high=float(simultaneous.high[clearest]),
        loss=float(curves.levels[clearest]),
    )
    return Tested(comparison, differences, simultaneous.p_value, grain)


def _of_group(
    names: tuple[str, str, str, str], values: Mapping[str, float], reference: Mapping[str, Any], interval: Interval
) -> Comparison:
    """Return the comparison of a group without its difference from the baseline.

    Args:
        names: Names of the metric, the group, the split and the baseline.
        values: Value of each run of the group.
        reference: The runs of the baseline.
        interval: Method of the interval.
    """
    metric, group, split, baseline = names
    numbers = list(values.values())
    comparison = Comparison(
        metric=metric,
        group=group,
        split=split,
        step=None,
        seeds=len(numbers),
        mean=float(np.mean(numbers)),
        deviation=float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None,
        baseline=baseline,
        interval=interval.method,
        confidence=interval.confidence,
        resamples=interval.resamples,
        seed=interval.seed,
    )
    if group == baseline:
        return comparison
    pairs = len(values.keys() & reference.keys())
    few = f"an interval needs at least {FEWEST_PAIRS} pairs of runs, found {pairs}"
    return replace(
        comparison,
        pairs=pairs,
        unpaired=len(values.keys() ^ reference.keys()),
        note=few if pairs < FEWEST_PAIRS else None,
        coverage_at_most=interval.coverage_at_most(pairs),
    )


def with_verdicts(compared: Sequence[Tested], margins: Mapping[tuple[str, str], float]) -> list[Comparison]:
    """Return the comparisons with verdicts, corrected for the number of all tests by Holm's procedure.

    Args:
        compared: The comparisons, at one step or at several in their order.
        margins: Margin of equivalence by metric and split; 0 for none.
    """
    tested = [index for index, each in enumerate(compared) if each.differences is not None]
    equivalent = [_equivalence(compared[index], margins) for index in tested]
    adjusted = dict(zip(tested, holm([compared[index].p_value for index in tested]), strict=True))
    adjusted_equivalent = dict(zip(tested, holm(equivalent), strict=True))
    results = []
    for index, each in enumerate(compared):
        comparison = each.comparison
        if index in adjusted:
            level = 1 - comparison.confidence
            enough = (comparison.pairs or 0) >= FEWEST_PAIRS
            different = enough and adjusted[index] <= level
            same = enough and not different and adjusted_equivalent[index] <= level
            direction = "higher" if (comparison.difference or 0) > 0 else "lower"
            comparison = replace(
                comparison,
                verdict="different" if different else "equivalent" if same else "undecided",
                direction=direction if different else None,
                collapse=comparison.collapse if different else None,
                p_value=adjusted[index] if enough else None,
                margin=margins[comparison.metric, comparison.split] or None,
                equivalence_p=adjusted_equivalent[index] if enough else None,
                tests=len(tested),
            )
        results.append(comparison)
    return _with_first_steps(results)


def _equivalence(tested: Tested, margins: Mapping[tuple[str, str], float]) -> float:
    """Return the p-value of a difference beyond the margin, at most over the levels of a comparison."""
    margin, differences = margins[tested.comparison.metric, tested.comparison.split], tested.differences
    if differences is None or not len(differences) or not margin:
        return 1.0
    if not differences.any():
        return 0.0
    return max(equivalence_p(column.tolist(), 1, tested.grain / margin) for column in (differences / margin).T)


def _with_first_steps(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Set `differs_from` where the comparisons of a metric and group are those of several steps."""
    by_pair: dict[tuple[str, str, str], list[Comparison]] = {}
    for each in comparisons:
        by_pair.setdefault((each.metric, each.split, each.group), []).append(each)
    results = []
    for steps in by_pair.values():
        first = None
        for each in reversed(steps):
            if len(steps) == 1 or each.verdict != "different":
                break
            first = each.step
        results += [replace(each, differs_from=first) for each in steps]
    return results


def _unit(values: Sequence[float]) -> float:
    """Return a power of two by which very large or small values are divided, so that their squares are finite; else 1.

    Division by a power of two changes no digit.
    """
    largest = max(map(abs, values))
    return 1.0 if largest == 0 or SMALL < largest < LARGE else 2.0 ** (math.frexp(largest)[1] - 1)


def _times(comparison: Comparison, unit: float) -> Comparison:
    names = ("mean", "deviation", "difference", "low", "high")
    values = {name: value * unit for name in names if (value := getattr(comparison, name)) is not None}
    if not all(map(math.isfinite, values.values())):
        raise DataError(
            f"{comparison.group} against {comparison.baseline}: {comparison.metric}: the values lie too far apart for "
            "their difference to be a number"
        )
    return replace(comparison, **values)

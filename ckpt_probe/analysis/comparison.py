"""Compare groups of runs that differ in their seed: means, paired differences, and intervals of the differences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ckpt_probe.analysis.groups import Measurement, RunGroup, measure, open_group
from ckpt_probe.errors import DataError, UsageError, listed
from ckpt_probe.keywords import as_sequence, checked_keywords, from_arguments
from ckpt_probe.progress import NullProgress, Progress

METHODS = ("bootstrap", "t")
FEWEST_PAIRS = 3
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
        verdict: "higher" or "lower" if the interval excludes 0, else "inconclusive"; "baseline" for the baseline.
        note: Reason why there is no interval.
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
    interval: str = "bootstrap"
    confidence: float = 0.95
    coverage_at_most: float | None = None
    resamples: int | None = None
    seed: int | None = None


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
            # By the upper tail: 0.5 + confidence / 2 rounds to 1 before the confidence does.
            half = float(stats.t.isf((1 - self.confidence) / 2, len(values) - 1) * stats.sem(values))
            return float(values.mean()) - half, float(values.mean()) + half
        interval = stats.bootstrap(
            (values,),
            np.mean,
            n_resamples=self.resamples,
            confidence_level=expanded(self.confidence, len(values)),
            method="percentile",
            # By its older name, which every scipy from 1.11 on accepts.
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


@checked_keywords
def compare(
    groups: Sequence[Path | str],
    *,
    metrics: str | Sequence[str] = ("accuracy",),
    split: str = "test",
    step: int | None = None,
    method: str = "bootstrap",
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Comparison]:
    """Compare groups of runs on metrics; the first group is the baseline.

    Entries of the same name are paired; the others count only in the means, which is reported through `progress`.

    Args:
        groups: Directories with one entry per seed: a run (metrics.jsonl), a directory of dumps, which are analyzed, or
            a file of records.
        metrics: Names of metrics, ignoring case; also short labels such as "MIR", and patterns such as "nc1.*".
        split: Split of the values.
        step: Training step of the values; the last step of each entry if None.
        method: "bootstrap", or "t" for Student's interval, which is exact for normal differences.
        confidence: Confidence of the intervals, between 0 and 1.
        resamples: Number of resamples of the bootstrap.
        seed: Seed of the bootstrap.
        progress: Receives messages and a bar.

    Returns:
        One comparison per metric and group, ordered by metric, then by group.

    Raises:
        DataError: If an entry has no such value; the message names the entry.
        UsageError: If there are fewer than two groups, or an argument is invalid.
    """
    progress, interval = progress or NullProgress(), from_arguments(Interval, locals())
    groups, metrics = as_sequence(groups) or (), as_sequence(metrics) or ()
    if len(groups) < 2:
        raise UsageError(f"compare needs at least two groups of runs, found {len(groups)}")
    if not metrics:
        raise UsageError("compare needs at least one metric, such as accuracy or class.mir")
    opened = _labelled([open_group(path) for path in groups])
    measurements: dict[str, dict[str, Measurement]] = {}
    with progress.task("entries", sum(len(group.members) for group in opened.values()), "entries") as bar:
        for label, group in opened.items():
            measurements[label] = {}
            for name, source in group.members.items():
                measurements[label][name] = measure(source, metrics, split=split, step=step)
                metrics = tuple(measurements[label][name].values)  # full names, also for all other runs
                bar.advance()
    for message in _warnings(opened, measurements):
        progress.message(message)
    return [_compare(metric, label, split, measurements, interval) for metric in metrics for label in opened]


def expanded(confidence: float, pairs: int) -> float:
    """Return the level at which the percentile interval of n normal differences is as wide as Student's."""
    from scipy import stats

    quantile = math.sqrt(pairs / (pairs - 1)) * stats.t.isf((1 - confidence) / 2, pairs - 1)
    return float(1 - 2 * stats.norm.sf(quantile))


def _compare(metric: str, label: str, split: str, measurements: Measurements, interval: Interval) -> Comparison:
    baseline = next(iter(measurements))
    values, reference = (
        {name: measurement.values[metric] for name, measurement in measurements[group].items()}
        for group in (label, baseline)
    )
    unit = _unit([*values.values(), *reference.values()])
    values, reference = ({name: value / unit for name, value in each.items()} for each in (values, reference))
    steps = {measurement.step for measurement in measurements[label].values()}
    comparison = Comparison(
        metric=metric,
        group=label,
        split=split,
        step=steps.pop() if len(steps) == 1 else None,
        seeds=len(values),
        mean=float(np.mean(list(values.values()))),
        deviation=float(np.std(list(values.values()), ddof=1)) if len(values) > 1 else None,
        baseline=baseline,
        interval=interval.method,
        confidence=interval.confidence,
        resamples=interval.resamples if interval.method == "bootstrap" else None,
        seed=interval.seed if interval.method == "bootstrap" else None,
    )
    if label != baseline:
        differences = [value - reference[name] for name, value in values.items() if name in reference]
        pairs, bounds = len(differences), interval.bounds(differences)
        comparison = replace(
            comparison,
            pairs=pairs,
            unpaired=len(values.keys() ^ reference.keys()),
            difference=float(np.mean(differences)) if differences else None,
            low=bounds and bounds[0],
            high=bounds and bounds[1],
            verdict=_verdict(bounds),
            note=None if bounds else f"an interval needs at least {FEWEST_PAIRS} pairs of runs, found {pairs}",
            coverage_at_most=interval.coverage_at_most(pairs),
        )
    return _times(comparison, unit)


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


def _verdict(bounds: tuple[float, float] | None) -> str:
    if bounds is None or bounds[0] <= 0 <= bounds[1]:
        return "inconclusive"
    return "higher" if bounds[0] > 0 else "lower"


def _labelled(groups: Sequence[RunGroup]) -> dict[str, RunGroup]:
    """Return the groups by the names of their directories, or by their paths if names are equal."""
    names = [group.path.resolve().name for group in groups]
    labels = [name if names.count(name) == 1 else str(group.path) for name, group in zip(names, groups, strict=True)]
    if len({group.path.resolve() for group in groups}) < len(groups):
        raise UsageError("compare: the same group is given twice")
    return dict(zip(labels, groups, strict=True))


def _warnings(groups: Mapping[str, RunGroup], measurements: Measurements) -> list[str]:
    """Return messages about ignored files, unpaired entries, and different steps."""
    baseline = next(iter(groups))
    messages = [
        f"{label}: {len(group.others)} of {len(group.others) + len(group.members)} names are not a run, "
        f"dumps or records and were ignored: {listed(group.others)}"
        for label, group in groups.items()
        if group.others
    ]
    for label in list(groups)[1:]:
        names, reference = measurements[label].keys(), measurements[baseline].keys()
        if unpaired := [*(names - reference), *(reference - names)]:
            messages.append(
                f"{label}: {len(unpaired)} entries have no entry of the same name to pair with; they count in the "
                f"means but not in the difference from {baseline}: {listed(sorted(unpaired))}"
            )
    steps = {str(measurement.step) for runs in measurements.values() for measurement in runs.values()}
    if len(steps) > 1:
        messages.append(f"the entries' last steps differ: {listed(sorted(steps, key=lambda s: (len(s), s)))}")
    return messages

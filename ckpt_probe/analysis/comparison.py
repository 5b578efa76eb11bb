"""Groups of seeds against each other: means, paired differences, and how far these are known."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ckpt_probe.analysis.groups import Group, Measured, measure, open_group
from ckpt_probe.errors import DataError, UsageError, listed
from ckpt_probe.keywords import as_sequence, checked_keywords, from_arguments
from ckpt_probe.progress import NullProgress, Progress

METHODS = ("bootstrap", "t")
FEWEST_PAIRS = 3
SMALL, LARGE = 1e-100, 1e100
INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Comparison:
    """One metric of one group, and its difference from the first group, the baseline.

    `deviation` is the standard deviation over the seeds (n − 1), None for one seed. `difference` is the mean over the
    pairs of this group's value less the baseline's; `low` and `high` bound it, None where `note` tells why.
    `verdict` is "higher" or "lower" where that interval excludes 0, else "inconclusive"; for the baseline itself it
    is "baseline". `coverage_at_most`: what no interval by resampling so few pairs can exceed, None where that is no
    less than `confidence`. `step` is None where the entries stand at different ones, or have none.
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
    """How a mean difference is bounded: method, confidence, and for the bootstrap its resamples and their seed."""

    method: str = "bootstrap"
    confidence: float = 0.95
    resamples: int = 9999
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"interval: expected {' or '.join(METHODS)}, found {self.method!r}")
        if not 0 < self.confidence < 1:
            raise UsageError(f"confidence: expected a number between 0 and 1, such as 0.95, found {self.confidence}")
        if self.resamples < 100:
            raise UsageError(f"resamples: expected at least 100, found {self.resamples}")

    def of(self, differences: Sequence[float]) -> tuple[float, float] | None:
        """Low and high of the mean of differences (n,); None for n < 3. One value where all differences are equal.

        method "bootstrap": the percentile interval of resampled means, expanded for small samples (Hesterberg 2015,
        "What Teachers Should Know About the Bootstrap"): its level is such that for normal differences
        it is as wide as Student's. Percentile and BCa as they are hold 0.82 in place of 0.95 for 5 normal differences,
        and BCa is undefined where all are equal. method "t": Student's, exact for normal differences.
        """
        from scipy import stats

        values = np.asarray(differences, dtype=np.float64)
        if len(values) < FEWEST_PAIRS:
            return None
        if np.ptp(values) == 0:
            return float(values[0]), float(values[0])
        if self.method == "t":
            # By its tail: 0.5 + confidence / 2 rounds to 1 before the confidence does.
            half = float(stats.t.isf((1 - self.confidence) / 2, len(values) - 1) * stats.sem(values))
            return float(values.mean()) - half, float(values.mean()) + half
        found = stats.bootstrap(
            (values,),
            np.mean,
            n_resamples=self.resamples,
            confidence_level=expanded(self.confidence, len(values)),
            method="percentile",
            # By its older name, which every scipy from 1.11 on takes.
            random_state=np.random.default_rng(self.seed),  # pyright: ignore[reportCallIssue]
        ).confidence_interval
        return float(found.low), float(found.high)

    def coverage_at_most(self, pairs: int) -> float | None:
        """What the bootstrap covers at most, where that is less than the confidence asked for; else None.

        A resampled mean lies between the smallest and the largest difference, and with a chance of 2^(1−n) all n of
        them lie on one side of their median.
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
        metrics: Names of metrics.
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
    opened = _named([open_group(path) for path in groups])
    measured: dict[str, dict[str, Measured]] = {}
    with progress.task("entries", sum(len(group.entries) for group in opened.values()), "entries") as bar:
        for label, group in opened.items():
            measured[label] = {}
            for name, source in group.entries.items():
                measured[label][name] = measure(source, metrics, split=split, step=step)
                bar.advance()
    for line in _remarks(opened, measured):
        progress.message(line)
    return [
        _comparison(metric, label, split, measured, interval) for metric in dict.fromkeys(metrics) for label in opened
    ]


def expanded(confidence: float, pairs: int) -> float:
    """The level at which a percentile interval of n normal differences is as wide as Student's (Hesterberg 2015)."""
    from scipy import stats

    quantile = math.sqrt(pairs / (pairs - 1)) * stats.t.isf((1 - confidence) / 2, pairs - 1)
    return float(1 - 2 * stats.norm.sf(quantile))


def _comparison(
    metric: str, label: str, split: str, measured: Mapping[str, Mapping[str, Measured]], interval: Interval
) -> Comparison:
    baseline = next(iter(measured))
    own = {name: entry.values[metric] for name, entry in measured[label].items()}
    theirs = {name: entry.values[metric] for name, entry in measured[baseline].items()}
    # A power of two: the sums of what is measured in it are the same digits, and do not overflow.
    unit = _unit([*own.values(), *theirs.values()])
    own, theirs = ({name: value / unit for name, value in values.items()} for values in (own, theirs))
    steps = {entry.step for entry in measured[label].values()}
    first = Comparison(
        metric=metric,
        group=label,
        split=split,
        step=steps.pop() if len(steps) == 1 else None,
        seeds=len(own),
        mean=float(np.mean(list(own.values()))),
        deviation=float(np.std(list(own.values()), ddof=1)) if len(own) > 1 else None,
        baseline=baseline,
        interval=interval.method,
        confidence=interval.confidence,
        resamples=interval.resamples if interval.method == "bootstrap" else None,
        seed=interval.seed if interval.method == "bootstrap" else None,
    )
    if label == baseline:
        return _in_numbers(first, unit)
    differences = [value - theirs[name] for name, value in own.items() if name in theirs]
    return _in_numbers(_against(first, differences, len(own.keys() ^ theirs.keys()), interval), unit)


def _against(first: Comparison, differences: Sequence[float], unpaired: int, interval: Interval) -> Comparison:
    pairs = len(differences)
    bounds = interval.of(differences)
    few = f"an interval needs at least {FEWEST_PAIRS} pairs of runs, found {pairs}"
    return replace(
        first,
        pairs=pairs,
        unpaired=unpaired,
        difference=float(np.mean(differences)) if differences else None,
        low=bounds and bounds[0],
        high=bounds and bounds[1],
        verdict=_verdict(bounds),
        note=few if bounds is None else None,
        coverage_at_most=interval.coverage_at_most(pairs),
    )


def _unit(values: Sequence[float]) -> float:
    """What numbers are measured in so that their squares are numbers too: 1 unless they are very large or small."""
    largest = max(map(abs, values))
    return 1.0 if largest == 0 or SMALL < largest < LARGE else 2.0 ** (math.frexp(largest)[1] - 1)


def _in_numbers(found: Comparison, unit: float) -> Comparison:
    names = ("mean", "deviation", "difference", "low", "high")
    held = {name: value * unit for name in names if (value := getattr(found, name)) is not None}
    if not all(map(math.isfinite, held.values())):
        told = "the values lie too far apart for their difference to be a number"
        raise DataError(f"{found.group} against {found.baseline}: {found.metric}: {told}")
    return replace(found, **held)


def _verdict(bounds: tuple[float, float] | None) -> str:
    if bounds is None or bounds[0] <= 0 <= bounds[1]:
        return INCONCLUSIVE
    return "higher" if bounds[0] > 0 else "lower"


def _named(groups: Sequence[Group]) -> dict[str, Group]:
    names = [group.path.resolve().name for group in groups]
    labels = [name if names.count(name) == 1 else str(group.path) for name, group in zip(names, groups, strict=True)]
    if len({group.path.resolve() for group in groups}) < len(groups):
        raise UsageError("compare: the same group is given twice")
    return dict(zip(labels, groups, strict=True))


def _remarks(groups: Mapping[str, Group], measured: Mapping[str, Mapping[str, Measured]]) -> list[str]:
    baseline = next(iter(groups))
    lines = [
        f"{label}: {len(group.others)} of {len(group.others) + len(group.entries)} names are not a run, "
        f"dumps or records and were ignored: {listed(group.others)}"
        for label, group in groups.items()
        if group.others
    ]
    for label in list(groups)[1:]:
        alone = [*(measured[label].keys() - measured[baseline]), *(measured[baseline].keys() - measured[label])]
        if alone:
            lines.append(
                f"{label}: {len(alone)} entries have no entry of the same name to pair with; they count in the "
                f"means but not in the difference from {baseline}: {listed(sorted(alone))}"
            )
    steps = {str(entry.step) for entries in measured.values() for entry in entries.values()}
    if len(steps) > 1:
        lines.append(f"the entries' last steps differ: {listed(sorted(steps, key=lambda s: (len(s), s)))}")
    return lines

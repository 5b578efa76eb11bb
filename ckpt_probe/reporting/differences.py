"""Differences between groups of runs at their last common step, the most clearly separated metrics first."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean, stdev

from ckpt_probe.analysis.records import metric_names, number
from ckpt_probe.moments.registry import metric_named
from ckpt_probe.reporting.plots.description import RowTable, TableRows
from ckpt_probe.reporting.plots.metrics import is_measure
from ckpt_probe.reporting.runs import Run
from ckpt_probe.reporting.table import MISSING
from ckpt_probe.reporting.uncertain import short_number

ALPHA = 0.05
"""Family-wise error of the verdicts over all metrics, by Holm's correction."""

TOP = 6
"""Number of the most clearly separated metrics whose plots are open."""


@dataclass(frozen=True)
class Difference:
    """A metric of two groups at a step.

    Attributes:
        metric: Name of the metric.
        split: Name of the split.
        step: Last step that all runs of all groups have; None without steps.
        values: Values over the seeds, by group.
        pair: The two groups that are separated most clearly.
        difference: Mean of the second group of the pair minus that of the first.
        t: Welch's statistic of that difference; None with fewer than two seeds in one of them.
        p: Two-sided p of Welch's test, times the number of pairs of groups (Bonferroni); None without t.
        different: Whether the difference remains significant after Holm's correction for all metrics.
    """

    metric: str
    split: str
    step: int | None
    values: Mapping[str, Sequence[float]]
    pair: tuple[str, str]
    difference: float
    t: float | None
    p: float | None
    different: bool = False


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs of each group; a run without a group is a group by its name."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.group or run.name, []).append(run)
    return groups


def has_groups(runs: Sequence[Run]) -> bool:
    """Return whether the runs are drawn by group: at least one of them belongs to a group of several seeds."""
    return any(run.group is not None for run in runs)


def differences(runs: Sequence[Run]) -> list[Difference]:
    """Compare the groups of some runs on every metric and split; empty with fewer than two groups.

    Metrics are ordered by p, then by the difference relative to the range of the metric over all records.
    """
    groups = grouped(runs)
    if len(groups) < 2:
        return []
    records = [record for run in runs for record in run.records]
    compared: list[tuple[Difference, float]] = []
    for split in dict.fromkeys(str(record["split"]) for record in records if record.get("split") is not None):
        step, last = _at_last_step(groups, split)
        names = metric_names(record for of_group in last.values() for record in of_group)
        for metric in filter(is_measure, names):
            values = {group: _known(of_group, metric) for group, of_group in last.items()}
            if all(len(each) == len(groups[group]) for group, each in values.items()):
                every = [value for r in records if (value := number(r, metric, split)) is not None]
                compared.append(_compared(metric, split, step, values, max(every) - min(every)))
    compared.sort(key=lambda each: (each[0].p is None, each[0].p or 0.0, -each[1]))
    return _corrected([difference for difference, _ in compared])


def difference_table(ranked: Sequence[Difference]) -> RowTable:
    """Describe the table of differences: one row per metric and split, the most clearly separated first."""
    groups = list(ranked[0].values)
    rows = []
    for each in ranked:
        metric = metric_named(each.metric)
        label = each.metric if metric is None else f"{metric.label} ({each.metric})"
        sign = "+" if each.difference > 0 else ""
        pair = "" if len(groups) == 2 else f" ({each.pair[1]} − {each.pair[0]})"
        cells = [_mean(each.values[group]) for group in groups]
        verdict = "one run" if each.p is None else "different" if each.different else "undecided"
        p = MISSING if each.p is None else f"{each.p:.2g}"
        rows.append((label, each.split, *cells, f"{sign}{short_number(each.difference)}{pair}", p, verdict))
    steps = {each.step for each in ranked}
    step = f"step {steps.pop()}" if len(steps) == 1 and None not in steps else "the last step of all runs"
    meaning = (
        f"mean ± standard deviation over seeds at {step}; p by Welch's test; “different” at {ALPHA:.0%} after Holm's "
        "correction for all rows"
    )
    difference = f"{groups[1]} − {groups[0]}" if len(groups) == 2 else "largest difference"
    columns = ("metric", "split", *groups, difference, "p", "verdict")
    of_all = (TableRows("", "", "", tuple(rows)),)
    return RowTable("differences", "Differences between the groups", meaning, columns, of_all)


def difference_sentences(ranked: Sequence[Difference]) -> list[str]:
    """Return sentences about the clearest differences, and how many metrics are undecided."""
    counts = {group: len(values) for group, values in ranked[0].values.items()}
    seeds = ", ".join(f"{group}: {count}" for group, count in counts.items())
    if all(each.p is None for each in ranked):
        return [
            f"With one run in a group ({seeds}) there is no statement about the recipes, only about these networks."
        ]
    clear = [each for each in ranked if each.different]
    sentences = []
    for each in clear[:TOP]:
        first, second = each.pair
        metric = metric_named(each.metric)
        verb = "higher" if each.difference > 0 else "lower"
        sentences.append(
            f"{metric.label if metric else each.metric} on {each.split} is {verb} in {second} than in {first}: "
            f"{_mean(each.values[second])} against {_mean(each.values[first])}."
        )
    rest = len(ranked) - len(clear)
    undecided = f"{rest} of {len(ranked)} comparisons are undecided" if rest else "No comparison is undecided"
    return [*sentences, f"{undecided} with these seeds ({seeds}), after correction for {len(ranked)} comparisons."]


def _at_last_step(
    groups: Mapping[str, Sequence[Run]], split: str
) -> tuple[int | None, dict[str, list[Mapping[str, object]]]]:
    """Return the last step that all runs have on a split, and the record of each run there, by group."""
    of_split = {
        group: [[r for r in run.records if r.get("split") == split] for run in runs] for group, runs in groups.items()
    }
    steps = [{r.get("step") for r in records} - {None} for runs in of_split.values() for records in runs]
    common = set.intersection(*steps) if steps else set()
    step = max(common) if common else None
    last = {
        group: [
            (matching or records)[-1]
            for records in runs
            if records and ((matching := [r for r in records if r.get("step") == step]) or step is None)
        ]
        for group, runs in of_split.items()
    }
    return step, last  # pyright: ignore[reportReturnType]


def _known(records: Sequence[Mapping[str, object]], metric: str) -> list[float]:
    values = (number(record, metric, metric) for record in records)
    return [value for value in values if value is not None]


def _compared(
    metric: str, split: str, step: int | None, values: Mapping[str, Sequence[float]], span: float
) -> tuple[Difference, float]:
    """Return the clearest pair of groups of a metric, and its difference relative to the range of the metric."""
    pairs = list(combinations(values, 2))
    tested = [(*_welch(values[first], values[second]), (first, second)) for first, second in pairs]
    size = {pair: abs(fmean(values[pair[1]]) - fmean(values[pair[0]])) for pair in pairs}
    t, p, pair = min(tested, key=lambda each: (each[1] is None, each[1] or 0.0, -size[each[2]]))
    difference = fmean(values[pair[1]]) - fmean(values[pair[0]])
    corrected = None if p is None else min(1.0, p * len(pairs))
    return Difference(metric, split, step, values, pair, difference, t, corrected), size[pair] / span if span else 0.0


def _welch(first: Sequence[float], second: Sequence[float]) -> tuple[float | None, float | None]:
    """Return t and p of Welch's test; p is 1 for equal values, and 0 if only the means differ."""
    if min(len(first), len(second)) < 2:
        return None, None
    difference = fmean(second) - fmean(first)
    parts = [stdev(values) ** 2 / len(values) for values in (first, second)]
    error = math.sqrt(sum(parts))
    if error <= 1e-12 * max(map(abs, [*first, *second]), default=0.0):
        return (0.0, 1.0) if difference == 0 else (math.copysign(math.inf, difference), 0.0)
    from scipy.special import stdtr

    freedom = sum(parts) ** 2 / sum(p**2 / (len(v) - 1) for p, v in zip(parts, (first, second), strict=True))
    t = difference / error
    return t, float(2 * stdtr(freedom, -abs(t)))


def _corrected(ranked: Sequence[Difference]) -> list[Difference]:
    """Mark the differences that Holm's step-down procedure keeps; they are in ascending order of p."""
    count = sum(each.p is not None for each in ranked)
    result, holds = [], True
    for index, each in enumerate(ranked):
        holds = holds and each.p is not None and each.p * (count - index) <= ALPHA
        result.append(replace(each, different=holds))
    return result


def _mean(values: Sequence[float]) -> str:
    text = short_number(fmean(values))
    return f"{text} ± {short_number(stdev(values))}" if len(values) > 1 else text

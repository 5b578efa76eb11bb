"""Differences between groups of runs at their last common step, the most clearly separated metrics first."""

from collections.abc import Mapping, Sequence

from ckpt_probe.analysis import Comparison
from ckpt_probe.analysis.comparison import OF_RANGE, Interval
from ckpt_probe.analysis.differences import Tested, compare_at_step, with_verdicts
from ckpt_probe.analysis.groups import Measurement, collapse_values
from ckpt_probe.analysis.records import grouped_by, metric_names, number
from ckpt_probe.moments.registry import metric_named
from ckpt_probe.reporting.comparison import signed, verdict_text
from ckpt_probe.reporting.plots.description import RowTable, TableRows
from ckpt_probe.reporting.plots.metrics import is_measure
from ckpt_probe.reporting.runs import Run
from ckpt_probe.reporting.table import MISSING
from ckpt_probe.reporting.uncertain import short_number

STUDENT = Interval(method="t")
"""Intervals of the comparisons, which the page does not show."""

TOP = 6
"""Number of the most clearly separated metrics whose plots are open."""


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs of each group; a run without a group is a group by its name."""
    return grouped_by(runs, lambda run: run.group or run.name)


def differences(runs: Sequence[Run]) -> list[Comparison]:
    """Compare the groups of some runs with the first one on every metric and split, at the last step of all runs.

    The statistics and verdicts are those of `compare`: runs of the same seed are paired.

    Args:
        runs: Runs of the groups.

    Returns:
        The comparisons, first those with the smallest p-value, then those with the largest difference relative to the
        range of the metric; each follows that of the baseline. Empty with fewer than two groups.
    """
    groups = grouped(runs)
    if len(groups) < 2:
        return []
    records = [record for run in runs for record in run.records]
    compared: list[Tested] = []
    margins: dict[tuple[str, str], float] = {}
    for split in dict.fromkeys(str(record["split"]) for record in records if record.get("split") is not None):
        measurements = _measurements(groups, split)
        every = [measurement for of_group in measurements.values() for measurement in of_group.values()]
        for metric in (name for name in every[0].values if all(name in each.values for each in every)):
            values = [v for r in records if r.get("split") == split and (v := number(r, metric, split)) is not None]
            margins[metric, split] = OF_RANGE * (max(values) - min(values))
            compared += [compare_at_step(metric, group, split, measurements, STUDENT) for group in groups]
    clearest: dict[tuple[str, str], tuple[float, float]] = {}
    for each in compared:
        key = each.comparison.metric, each.comparison.split
        size = abs(each.comparison.difference or 0.0) / (margins[key] or 1.0)
        clearest[key] = min(clearest.get(key, (1.0, 0.0)), (each.p_value, -size))
    compared.sort(key=lambda each: clearest[each.comparison.metric, each.comparison.split])
    return with_verdicts(compared, margins)


def difference_table(compared: Sequence[Comparison]) -> RowTable:
    """Describe the table of differences: one row per metric, split and group, the most clearly separated first."""
    baseline = compared[0].baseline
    others = list(dict.fromkeys(each.group for each in compared if each.group != baseline))
    rows = []
    for each in compared:
        if each.group == baseline:
            mean_of_baseline = _mean(each)
            continue
        group = _mean(each) if len(others) == 1 else f"{each.group}: {_mean(each)}"
        change = signed(each.difference)
        p = MISSING if each.p_value is None else f"{each.p_value:.2g}"
        verdict = "one run" if each.seeds == 1 else verdict_text(each)
        rows.append((_label(each.metric, with_name=True), each.split, mean_of_baseline, group, change, p, verdict))
    steps = {each.step for each in compared}
    step = f"step {steps.pop()}" if len(steps) == 1 and None not in steps else "the last step of all runs"
    meaning = (
        f"mean ± standard deviation over seeds at {step}, and mean difference of runs of the same seed; p and verdict "
        f"as by compare: Student's paired test at {compared[0].confidence:.0%}, after Holm's correction for all rows"
    )
    group = others[0] if len(others) == 1 else "other group"
    columns = ("metric", "split", baseline, group, f"{group} − {baseline}", "p", "verdict")
    of_all = (TableRows("", "", "", tuple(rows)),)
    return RowTable("differences", "Differences between the groups", meaning, columns, of_all)


def difference_sentences(compared: Sequence[Comparison]) -> list[str]:
    """Return sentences about the clearest differences, and how many comparisons are undecided."""
    seeds = ", ".join(dict.fromkeys(f"{each.group}: {each.seeds}" for each in compared))
    pairs = [each for each in compared if each.group != each.baseline]
    if all(each.note for each in pairs):
        if all(each.seeds == 1 for each in compared):
            return [
                f"With one run in a group ({seeds}) there is no statement about the recipes, only about these networks."
            ]
        return [f"There is no statement about the recipes ({seeds}): {pairs[0].note}; runs of the same seed are pairs."]
    means = {(each.metric, each.split): _mean(each) for each in compared if each.group == each.baseline}
    sentences = [
        f"{_label(each.metric)} on {each.split} is {each.direction} in {each.group} than in {each.baseline}: "
        f"{_mean(each)} against {means[each.metric, each.split]}."
        for each in pairs
        if each.verdict == "different"
    ]
    rest = sum(each.verdict == "undecided" for each in pairs)
    undecided = f"{rest} of {len(pairs)} comparisons are undecided" if rest else "No comparison is undecided"
    return [*sentences[:TOP], f"{undecided} with these seeds ({seeds}), after correction for {len(pairs)} comparisons."]


def _measurements(groups: Mapping[str, Sequence[Run]], split: str) -> dict[str, dict[str, Measurement]]:
    """Return the numbers of each run at the last step that all runs have on a split, by group and seed."""
    of_split = {
        (group, run.seed or run.name): [record for record in run.records if record.get("split") == split]
        for group, runs in groups.items()
        for run in runs
    }
    common = set.intersection(*({record.get("step") for record in records} - {None} for records in of_split.values()))
    step = max(common) if common else None
    measurements: dict[str, dict[str, Measurement]] = {group: {} for group in groups}
    for (group, seed), records in of_split.items():
        at_step = [record for record in records if step is None or record.get("step") == step]
        names = filter(is_measure, metric_names(at_step[-1:]))
        known = {name: value for name in names if (value := number(at_step[-1], name, name)) is not None}
        measurements[group][seed] = Measurement(step, known, collapse_values(at_step[-1], known) if known else {})
    return measurements


def _label(name: str, *, with_name: bool = False) -> str:
    metric = metric_named(name)
    return name if metric is None else f"{metric.label} ({name})" if with_name else metric.label


def _mean(each: Comparison) -> str:
    text = short_number(each.mean)
    return text if each.deviation is None else f"{text} ± {short_number(each.deviation)}"

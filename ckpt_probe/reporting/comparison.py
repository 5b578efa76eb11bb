"""Comparisons of groups of runs: the table of `compare`, and the differences on the page, the clearest first."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from ckpt_probe.analysis import Comparison
from ckpt_probe.analysis.comparison.compare import OF_RANGE, Interval
from ckpt_probe.analysis.comparison.differences import Tested, compare_at_step, with_verdicts
from ckpt_probe.analysis.comparison.groups import Measurement, collapse_values
from ckpt_probe.analysis.comparison.paired import grain_of
from ckpt_probe.analysis.records import grouped_by, metric_names, number
from ckpt_probe.reporting.plots.description import RowTable, TableRows
from ckpt_probe.reporting.plots.runs import Run, is_measure
from ckpt_probe.reporting.table import add_row, label_of, plain_table
from ckpt_probe.reporting.wording import MISSING, short_number


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Return a table with one row per metric and group; each interval has the confidence that it can reach.

    Of comparisons at every step, the table has those of the last.
    """
    at_loss = any(comparison.loss_low is not None for comparison in comparisons)
    # The band over all losses has its confidence for any number of pairs, so that the note below the table states it.
    numbers = ("seeds", "mean", "std", "difference", *(["at loss", "band"] if at_loss else ["interval", "confidence"]))
    texts = ("metric", "group", "verdict")
    table = plain_table((name, name in texts) for name in ("metric", "group", *numbers, "verdict"))
    before = None
    for comparison in _last_of_each(comparisons):
        numbers = (str(comparison.seeds), short_number(comparison.mean), short_number(comparison.deviation))
        cells = [*numbers, *_difference_cells(comparison, at_loss), verdict_text(comparison)]
        metric = comparison.metric if comparison.metric != before else ""
        add_row(table, [metric, comparison.group, *cells], style="dim" if comparison.pairs is None else None)
        before = comparison.metric
    return table


def verdict_text(comparison: Comparison) -> str:
    """Return the verdict with its direction, the first step, and the relation to the value at collapse."""
    details = [
        comparison.direction,
        None if comparison.differs_from is None else f"from step {comparison.differs_from} on",
        comparison.collapse and f"{comparison.collapse} {'to' if comparison.collapse == 'nearer' else 'from'} collapse",
    ]
    return ": ".join(filter(None, [comparison.verdict, ", ".join(filter(None, details))]))


def comparison_footnotes(comparisons: Sequence[Comparison]) -> list[str]:
    """Return notes below the table: split, step and method, missing values, and limits of the intervals."""
    if not comparisons:
        return []
    first = comparisons[0]
    displayed = _last_of_each(comparisons)
    step = _step_text(comparisons, "each entry's own step")
    if len(displayed) < len(comparisons):
        step = f"{len({each.step for each in comparisons})} steps, of which the table has the last"
    at_loss = first.loss_low is not None
    if at_loss:
        step = f"equal loss, from {short_number(first.loss_high)} to {short_number(first.loss_low)}"
    how = f"bootstrap of {first.resamples} resamples, seed {first.seed}{'' if at_loss else ', expanded for few seeds'}"
    band = f"{_percent(first.confidence)} band of the mean difference over all losses"
    of_what = band if at_loss else "intervals of the mean difference"
    notes = [
        f"{first.split} at {step}; differences from {first.baseline} of entries of the same name; "
        f"{of_what}: {how if first.interval == 'bootstrap' or at_loss else 'Student’s t'}"
    ]
    tested = next((comparison for comparison in comparisons if comparison.tests), None)
    if tested is not None:
        test = "the largest of Student's ratios over all losses" if at_loss else "Student's paired test"
        notes.append(
            f"verdicts at {_percent(first.confidence)}, corrected for the number of tests, {tested.tests} (Holm); "
            f"different: {test} (p: {_p_values(displayed)}); "
            f"equivalent: two one-sided tests within the margin ({_margins(displayed)})"
        )
    for comparison in comparisons:
        if comparison.note:
            notes.append(f"{MISSING} {comparison.group}: {comparison.note}")
        if comparison.coverage_at_most is not None:
            requested, most = _percent(comparison.confidence), _percent(comparison.coverage_at_most)
            notes.append(
                f"{comparison.group}: with {comparison.pairs} pairs the confidence of a resampled interval is at most "
                f"{most}, not {requested}; "
                "take more seeds, or `method='t'`, which assumes normal differences"
            )
    return list(dict.fromkeys(notes))


def _step_text(comparisons: Sequence[Comparison], several: str) -> str:
    steps = {each.step for each in comparisons}
    return several if len(steps) != 1 or None in steps else f"step {steps.pop()}"


def _last_of_each(comparisons: Sequence[Comparison]) -> list[Comparison]:
    return list({(each.metric, each.group): each for each in comparisons}.values())


def _margins(comparisons: Sequence[Comparison]) -> str:
    margins = {each.metric: each.margin for each in comparisons if each.tests}
    return ", ".join(
        f"{metric} {'unknown: its values have no range' if not margin else short_number(margin)}"
        for metric, margin in margins.items()
    )


def _p_values(comparisons: Sequence[Comparison]) -> str:
    tested = [each for each in comparisons if each.p_value is not None]
    several = len({each.group for each in tested}) > 1
    named = [f"{each.group} {each.metric}" if several else each.metric for each in tested]
    return ", ".join(f"{name} {each.p_value:.2g}" for name, each in zip(named, tested, strict=True)) or MISSING


def _difference_cells(comparison: Comparison, at_loss: bool) -> list[str]:
    if comparison.pairs is None:
        return [""] * 3
    interval = confidence = MISSING
    if comparison.low is not None:
        interval, most = f"[{signed(comparison.low)}, {signed(comparison.high)}]", comparison.coverage_at_most
        confidence = _percent(comparison.confidence) if most is None else f"at most {_percent(most)}"
    cells = [short_number(comparison.loss), interval] if at_loss else [interval, confidence]
    return [signed(comparison.difference), *cells]


def _percent(share: float) -> str:
    return f"{100 * share:.6g} %"


def signed(value: float | None) -> str:
    """Return a difference with its sign; a dash for None."""
    return MISSING if value is None else f"{'+' if value > 0 else ''}{short_number(value)}"


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
            grain = grain_of(values)
            compared += [compare_at_step(metric, group, split, measurements, STUDENT, grain) for group in groups]
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
        rows.append((label_of(each.metric, with_name=True), each.split, mean_of_baseline, group, change, p, verdict))
    in_common = all(each.step is not None for each in compared)
    step = _step_text(compared, "the last step of all runs" if in_common else "each run's own last step")
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
        f"{label_of(each.metric)} on {each.split} is {each.direction} in {each.group} than in {each.baseline}: "
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


def _mean(each: Comparison) -> str:
    text = short_number(each.mean)
    return text if each.deviation is None else f"{text} ± {short_number(each.deviation)}"

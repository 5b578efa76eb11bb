"""Compare groups of runs that differ in their seed: at a step, at every step, or at equal loss, with a verdict."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ckpt_probe.analysis.comparison.differences import (
    Comparison,
    Measurements,
    Tested,
    compare_at_loss,
    compare_at_step,
    with_verdicts,
)
from ckpt_probe.analysis.comparison.groups import (
    Measurement,
    RunGroup,
    collapse_values,
    measure,
    open_groups,
    read_course,
    read_dump,
)
from ckpt_probe.analysis.comparison.paired import Interval, curves_by_loss, expanded, grain_of
from ckpt_probe.analysis.entries import bias_is_reliable
from ckpt_probe.analysis.records import finite
from ckpt_probe.errors import DataError, UsageError, listed
from ckpt_probe.keywords import as_paths, as_sequence, from_arguments, whole_number
from ckpt_probe.moments.errors.design import difference
from ckpt_probe.progress import NullProgress, Progress

__all__ = ["Comparison", "Interval", "compare", "expanded"]

STEPS, LOSS = "all", "loss"
"""Values of `step` and `at` that compare at every common step, and at equal loss."""

ONE_RUN = "one run per group: no claim about the recipes, whose runs with other seeds may differ as much"

TOO_SMALL = "no interval of these two networks: the sample may be too small to correct the bias of this number"

OF_RANGE = 0.05
"""Default margin of equivalence, as a share of the range of a metric over training."""

Courses = Mapping[str, Mapping[str, Mapping[int, Mapping[str, Any]]]]
"""Records of every run at every step, by group, name and step."""


def compare(
    groups: Sequence[Path | str],
    *,
    metrics: str | Sequence[str] = ("accuracy",),
    split: str = "test",
    step: int | str | None = None,
    at: str | None = None,
    margin: float | None = None,
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
            a file of records; one directory of such directories; or NAME=PATTERN, whose matches are the entries.
        metrics: Names of metrics, ignoring case; also short labels such as "MIR", and patterns such as "nc1.*".
        split: Split of the values.
        step: Training step of the values; the last step of each entry if None; "all" compares at every common step.
        at: "loss" compares at equal loss, over the range of the loss that all entries have in common. Of a loss that
            is not monotone, the running minimum counts.
        margin: Margin within which groups are equivalent, in units of the metric; 5 % of its range over training if
            None.
        method: "bootstrap", or "t" for Student's interval, which is exact for normal differences.
        confidence: Confidence of the intervals and verdicts, between 0 and 1.
        resamples: Number of resamples of the bootstrap.
        seed: Seed of the bootstrap.
        progress: Receives messages and a bar.

    Returns:
        One comparison per metric and group, ordered by metric, then by group; with `step="all"` one for each step.

    Raises:
        DataError: If no metric has a value in every entry; the message names the entry. If others have one, a metric
            without is left out, which is reported through `progress`.
        UsageError: If there are fewer than two groups, or an argument is invalid.
    """
    progress, interval = progress or NullProgress(), from_arguments(Interval, locals())
    groups, metrics = as_paths(groups), as_sequence(metrics) or ()
    if not metrics:
        raise UsageError("compare needs at least one metric, such as accuracy or class.mir")
    if at not in (None, LOSS):
        raise UsageError(f"`at={at!r}`: expected 'loss'")
    if isinstance(step, str) and step != STEPS:
        raise UsageError(f"`step={step!r}`: expected a step or 'all'")
    if step is not None and step != STEPS:
        step = whole_number("step", step)
    if at == LOSS and step is not None:
        raise UsageError(f"`at='loss'` compares over all steps; leave out `step={step!r}`")
    if margin is not None and not 0 < margin < math.inf:
        raise UsageError(f"`margin={margin}`: expected a number above 0")
    opened = _labelled(open_groups(groups))
    if len(opened) < 2:
        raise UsageError(f"compare needs at least two groups of runs, found {len(opened)}")
    measurements: dict[str, dict[str, Measurement]] = {}
    chosen = step if isinstance(step, int) else None
    with progress.task("entries", sum(len(group.members) for group in opened.values()), "entries") as bar:
        for label, group in opened.items():
            measurements[label] = {}
            for name, source in group.members.items():
                required = all(not runs for runs in measurements.values())
                measured = measure(source, metrics, split=split, step=chosen, required=required)
                measurements[label][name] = measured
                metrics = tuple(dict.fromkeys((*measured.values, *measured.undefined)))  # full names, for all runs
                bar.advance()
    for message in _warnings(opened, measurements):
        progress.message(message)
    names = [*metrics, *([LOSS] if at == LOSS and LOSS not in metrics else [])]
    courses: Courses = {}
    try:
        if margin is None or step == STEPS or at == LOSS:
            courses = _courses(opened, names, split, progress)
    except DataError as error:
        if step == STEPS or at == LOSS:
            raise
        progress.message(f"without a margin of equivalence: {error}")
    values = {name: [*_values(courses, name)] for name in metrics}
    margins = {
        (name, split): margin or OF_RANGE * (max(values[name], default=0) - min(values[name], default=0))
        for name in metrics
    }
    last = [measurement.values for runs in measurements.values() for measurement in runs.values()]
    grains = {name: grain_of(values[name] or (each[name] for each in last if name in each)) for name in metrics}

    def of_metric(name: str) -> list[Tested]:
        if at == LOSS:
            curves = curves_by_loss(courses, name, progress)
            return [compare_at_loss(name, label, split, curves, interval, grains[name]) for label in opened]
        steps = _by_step(courses, name, progress) if step == STEPS else [_defined(name, measurements)]
        return [
            compare_at_step(name, label, split, at_step, interval, grains[name])
            for label in opened
            for at_step in steps
        ]

    compared = with_verdicts(_of_each(metrics, of_metric, progress), margins)
    if at is None and step != STEPS and all(len(group.members) == 1 for group in opened.values()):
        return _of_single_runs(compared, opened, split, chosen)
    return compared


def _of_each(metrics: Sequence[str], of_metric: Callable[[str], list[Tested]], progress: Progress) -> list[Tested]:
    """Return the results of a function for all metrics without those that have no comparison, which are reported.

    Raises:
        DataError: If no metric has one.
    """
    results: list[Tested] = []
    errors: dict[str, DataError] = {}
    for name in metrics:
        try:
            results += of_metric(name)
        except DataError as error:
            errors[name] = error
    for name, error in errors.items():
        if not results:
            raise error
        progress.message(f"{error}; {name} is left out")
    return results


def _defined(metric: str, measurements: Measurements) -> Measurements:
    """Return measurements of which all have a metric; raise DataError if one has not."""
    for measurement in (measurement for runs in measurements.values() for measurement in runs.values()):
        if metric in measurement.undefined:
            raise DataError(measurement.undefined[metric])
    return measurements


def _of_single_runs(
    compared: Sequence[Comparison], groups: Mapping[str, RunGroup], split: str, step: int | None
) -> list[Comparison]:
    """Return the comparisons of groups of one run, for dumps with the interval of the difference of the two networks.

    It comes from the standard error of rows, which is paired if both dumps have the same rows. It is missing where a
    bias is not reliable.
    """
    from scipy import stats

    sources = [next(iter(group.members.values())) for group in groups.values()]
    details = {}
    if all(source.is_dir() for source in sources):
        records = (read_dump(source, split, step, errors=True) for source in sources)
        details = dict(zip(groups, records, strict=True))
    results = []
    for each in compared:
        if each.group != each.baseline:
            each = replace(each, note=ONE_RUN)
            if details:
                names = [each.metric]
                try:
                    of_rows = difference(details[each.group], details[each.baseline], names)
                except DataError:
                    of_rows = {}
                error, corrected = of_rows.get(f"{each.metric}_stderr"), of_rows.get(f"{each.metric}_corrected")
                records = (details[group].record for group in (each.group, each.baseline))
                if corrected is not None and not all(bias_is_reliable(record, each.metric) for record in records):
                    each = replace(each, note=f"{ONE_RUN}; {TOO_SMALL}")
                elif error is not None and corrected is not None:
                    half = error * float(stats.norm.isf((1 - each.confidence) / 2))
                    bounds = {"difference": corrected, "low": corrected - half, "high": corrected + half}
                    each = replace(each, **bounds, note=f"{ONE_RUN}; the interval is that of these two networks")
        results.append(each)
    return results


def _courses(groups: Mapping[str, RunGroup], names: Sequence[str], split: str, progress: Progress) -> Courses:
    return {
        label: {
            name: read_course(source, names, split=split, progress=progress) for name, source in group.members.items()
        }
        for label, group in groups.items()
    }


def _values(courses: Courses, metric: str) -> Iterator[float]:
    """Yield the values of a metric at all steps of all runs."""
    for course in (course for runs in courses.values() for course in runs.values()):
        yield from (value for record in course.values() if (value := finite(record.get(metric))) is not None)


def _by_step(courses: Courses, metric: str, progress: Progress) -> list[Measurements]:
    """Return the measurements at every step at which all runs have a metric, in ascending order."""
    runs = [course for group in courses.values() for course in group.values()]
    common = sorted(set.intersection(*(set(course) for course in runs)))
    steps = [step for step in common if all(course[step].get(metric) is not None for course in runs)]
    union = len(set.union(*(set(course) for course in runs)))
    if not steps:
        raise DataError(f"compare: the runs have no step in common at which all have {metric}")
    if len(steps) < union:
        progress.message(f"{metric}: {len(steps)} of {union} steps are compared: those at which every run has it")
    return [
        {
            label: {
                name: Measurement(step, {metric: float(course[step][metric])}, collapse_values(course[step], [metric]))
                for name, course in group.items()
            }
            for label, group in courses.items()
        }
        for step in steps
    ]


def _labelled(groups: Sequence[RunGroup]) -> dict[str, RunGroup]:
    """Return the groups by the names of their directories, or by their paths if names are equal."""
    names = [group.name or group.path.resolve().name for group in groups]
    labels = [name if names.count(name) == 1 else str(group.path) for name, group in zip(names, groups, strict=True)]
    if len({tuple(group.members.values()) for group in groups}) < len(groups):
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

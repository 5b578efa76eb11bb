"""Events of a run: intervals of steps that contain a change, and intervals of the onset and the end of each metric."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

import numpy as np

from ckpt_probe.analysis.comparison.paired import holm
from ckpt_probe.analysis.records import grouped_by
from ckpt_probe.errors import UsageError
from ckpt_probe.findings.intervals import MOST_SPLITS, Family, Interval, families, first_departure, narrowest
from ckpt_probe.findings.noise import COEFFICIENTS, MEDIAN_OF_NORMAL, Noise, NoiseModel, contrasts
from ckpt_probe.findings.series import Series

FEWEST = 12
"""Number of checkpoints below which no events are reported."""

LEVEL = 0.05
"""Family-wise error over the intervals and metrics of a run."""

OF_CHANGES, OF_LEVELS = 0.55, 0.2
"""Shares of the family-wise error for changes, and for onset and end; the rest covers the error of the simulation."""

ABRUPT = math.log(2)
"""Largest width, in log step, of an abrupt change."""

SMOOTH, BESIDE = 5, 8
"""Degree of the smooth trend from which an abrupt change departs, and the least number of checkpoints on either side of
its interval in which that trend is fitted."""

AT_REST, FEWEST_AT_REST, LEVEL_SLOPE = 4, 4, 2
"""Standard deviations of noise within which a metric is at its final level, least number of later checkpoints, and the
most standard errors of a slope from there on."""

LARGEST = 1e150
"""Largest value whose square, and sums of such, are numbers."""

DEPARTURE, OF_CRITICAL = 0.05, 0.7
"""Least departure as a share of the range of the values there, and least statistic as a share of the critical value."""

Record = dict[str, Any]


def find_events(series: Sequence[Series], level: float = LEVEL) -> tuple[list[Record], list[Record]]:
    """Find the events of one run, with Holm's correction over its series.

    Args:
        series: Series of one run.
        level: Family-wise error over intervals and series.

    Returns:
        One record per event, by series and step; and one record per series, with its noise, its smallest detectable
        change, and the reason if no events can be reported.

    Raises:
        UsageError: If `level` is not between 0 and 0.5.
    """
    if not 0 < level < 0.5:
        raise UsageError(f"`level={level}`: expected a number between 0 and 0.5, such as 0.05")
    tested = [each for each in series if untested(each) is None]
    by_series = {id(analysis.series): analysis for analysis in analyses(tested)}
    results = [by_series[id(each)] for each in tested]
    changes = _levels([each.line.p_value(each.of_line.max()) for each in results], OF_CHANGES * level)
    levels = _levels([each.level.p_value(each.of_level.max()) for each in results], OF_LEVELS * level)
    events: list[Record] = []
    limits: dict[int, Record] = {}
    first = level / max(1, len(results))
    for analysis, of_changes, of_levels in zip(results, changes, levels, strict=True):
        of_series = [*analysis.changes(of_changes), *analysis.onset_and_end(of_levels)]
        of_series.sort(key=lambda event: (event["from_step"], event["to_step"]))
        limit = limits[id(analysis.series)] = analysis.limit(OF_CHANGES * first)
        events += [{**event, "smallest_detectable": limit["smallest_detectable"]} for event in of_series]
    return events, [limits.get(id(each)) or _without_events(each) for each in series]


def untested(series: Series) -> str | None:
    """Return the reason why a series has no events: too few checkpoints, equal steps, or values that are all equal."""
    if len(series.steps) < FEWEST:
        count = len(series.steps)
        return f"{count} checkpoint{'' if count == 1 else 's'} with a value; events need at least {FEWEST}"
    if np.ptp(series.values) == 0:
        return f"all values are {series.values[0]:g}"
    if np.abs(series.values).max() > LARGEST:
        return f"a value is larger than {LARGEST:g}"
    return None


def identity(series: Series) -> Record:
    """Return the entries of a record that name a series."""
    return {"group": series.group, "seed": series.seed, **series.subject, "metric": series.metric}


def name_of(record: Mapping[str, Any]) -> str:
    """Return the name of the series of an event, `Series.name`, from the entries of `identity`."""
    names = list(record)
    return " ".join(str(record[name]) for name in names[2 : names.index("metric") + 1])


def positions(steps: np.ndarray) -> np.ndarray:
    """Return log(step + t₁), t₁ being the first positive step."""
    return np.log(steps - min(steps[0], 0) + float(steps[steps > 0][0] if (steps > 0).any() else 1))


@dataclass(frozen=True)
class Analysis:
    """Statistics of one series.

    Attributes:
        series: The series.
        model: Noise model of its grid.
        level: Family of the intervals that are tested for departures from a constant.
        line: Family of the intervals that are tested for departures from a line.
        noise: Noise of the series.
        of_level: Statistics of the intervals of `level`.
        of_line: Statistics of the intervals of `line`.
    """

    series: Series
    model: NoiseModel
    level: Family
    line: Family
    noise: Noise
    of_level: np.ndarray
    of_line: np.ndarray

    def changes(self, level: float | None) -> Iterator[Record]:
        """Yield a record for each interval that contains a change; no record without a `level`."""
        if level is None:
            return
        critical = self.line.critical(level)
        for each in narrowest(self.line, self.of_line, critical):
            yield self._event("change", each, abrupt=self._is_abrupt(each, critical))

    def onset_and_end(self, level: float | None) -> Iterator[Record]:
        """Yield the records of the onset and the end; no record without a `level`."""
        if level is None:
            return
        significant = [*compress(self.level.intervals, self.of_level > self.level.critical(level))]
        first = first_departure(significant)
        if first is None:
            return
        yield self._event("onset", first)
        last = max(significant, key=lambda each: (each.start, -each.stop))
        rest = at_rest(self.series.values, last.stop - 1, float(self.noise.second[0, last.stop - 1]))
        if rest is not None:
            yield self._event("end", Interval(last.start, rest + 1))

    def limit(self, level: float) -> Record:
        """Return the noise of the series, and the jump at its middle that is reported in 90 % of the cases."""
        middle = len(self.series.steps) // 2
        smallest = self.line.detectable(int(self.noise.limit[0]), self.line.critical(level))
        return {
            **identity(self.series),
            "checkpoints": len(self.series.steps),
            "absent": self.series.absent,
            "noise": float(self.noise.scale[0].min()),
            "smallest_detectable": smallest * float(self.noise.scale[0, middle]),
            "missing": None,
        }

    def _event(self, kind: str, at: Interval, **more: Any) -> Record:
        steps, values = self.series.steps, self.series.values
        return {
            **identity(self.series),
            "kind": kind,
            "from_step": _step(steps[at.start]),
            "to_step": _step(steps[at.stop - 1]),
            **more,
            "value_before": float(values[at.start]),
            "value_after": float(values[at.stop - 1]),
        }

    def _is_abrupt(self, at: Interval, critical: float) -> bool:
        """Return whether an interval is narrower than a factor of 2, and its change no part of a smooth curve.

        A curve is smooth if a polynomial of degree 5 in the step or in its logarithm describes it in and around the
        interval; with little noise and many checkpoints, even a power law departs from a line within a factor of 2.
        """
        x, count = self.model.x, at.stop - at.start
        if x[at.stop - 1] - x[at.start] > ABRUPT:
            return False
        start = max(0, at.start - max(BESIDE, count))
        stop = min(len(x), at.stop + max(BESIDE, count))
        values = self.series.values[start:stop]
        coefficient = float(COEFFICIENTS[self.noise.limit[0]])
        scale = self.noise.scale[0, (start + stop) // 2]
        for axis in (x[start:stop], np.exp(x[start:stop])):
            vectors = contrasts(axis, SMOOTH, MOST_SPLITS)
            answers = vectors @ values
            largest = int(np.abs(answers).argmax())
            departure = np.ptp(answers[largest] * vectors[largest])
            tests = contrasts(axis, SMOOTH, MOST_SPLITS, coefficient)
            significant = np.abs(tests @ values).max() > OF_CRITICAL * critical * scale
            if not significant or departure < DEPARTURE * np.ptp(values):
                return False
        return True


def at_rest(values: np.ndarray, start: int, scale: float) -> int | None:
    """Return the first index from `start` on whose value lies within the noise of the median of all later values.

    The noise is the median absolute difference of neighbours from `start` on, as a standard deviation.

    Args:
        values: Values (n,) of a series.
        start: Index.
        scale: Standard deviation of the noise of the series.

    Returns:
        The index; None if too few values follow it, or the line that fits it and them best is not level.
    """
    if len(values) - start <= FEWEST_AT_REST:
        return None
    noise = np.median(np.abs(np.diff(values[start:]))) / (math.sqrt(2) * MEDIAN_OF_NORMAL)
    for index in range(start, len(values) - FEWEST_AT_REST):
        later = values[index + 1 :]
        if abs(values[index] - np.median(later)) <= AT_REST * noise:
            order = np.arange(len(later) + 1) - len(later) / 2
            slope = abs(float(order @ values[index:]))
            return index if slope <= LEVEL_SLOPE * scale * float(np.linalg.norm(order)) else None
    return None


def analyses(series: Sequence[Series]) -> Iterator[Analysis]:
    """Yield the analysis of each series, those on one grid of steps together."""
    for x, members in grouped_by(series, lambda each: tuple(positions(each.steps).tolist())).items():
        model, level, line = families(x)
        values = np.array([each.values for each in members])
        noise = model.estimate(values)
        # A change of one or two samples is no event, even where all other values are equal.
        grains = np.array([[each.grain] for each in members])
        noise = replace(noise, scale=np.maximum(noise.scale, grains), second=np.maximum(noise.second, grains))
        of_level, of_line = level.statistics(values, noise), line.statistics(values, noise)
        for index, each in enumerate(members):
            of_series = Noise(*(each[index : index + 1] for each in (noise.scale, noise.limit, noise.second)))
            yield Analysis(each, model, level, line, of_series, of_level[:, index], of_line[:, index])


def _without_events(series: Series) -> Record:
    counts = {"checkpoints": len(series.steps), "absent": series.absent}
    return {**identity(series), **counts, "smallest_detectable": None, "missing": untested(series)}


def _levels(p_values: Sequence[float], level: float) -> list[float | None]:
    """Return the level at which each test is rejected by Holm's procedure; None for those that are not rejected."""
    adjusted = zip(p_values, holm(p_values), strict=True)
    return [level * p_value / largest if largest <= level else None for p_value, largest in adjusted]


def _step(step: float) -> int | float:
    return int(step) if step == int(step) else float(step)

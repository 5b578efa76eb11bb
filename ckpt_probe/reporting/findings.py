"""Findings as a table, as intervals drawn with characters, and as a plot of intervals, sorted by onset."""

import math
from collections.abc import Iterable, Iterator

from rich.cells import cell_len, set_cell_size
from rich.table import Table

from ckpt_probe.analysis.records import grouped_by
from ckpt_probe.errors import listed, printable, shortened
from ckpt_probe.findings import Findings
from ckpt_probe.findings.detection import name_of
from ckpt_probe.findings.findings import event_sentence, run_name, series_key, untested_names
from ckpt_probe.findings.order import FEWEST_SEEDS
from ckpt_probe.reporting.plots.description import Bar, IntervalPlot
from ckpt_probe.reporting.plots.runs import axis_along
from ckpt_probe.reporting.table import add_row, plain_table
from ckpt_probe.reporting.wording import MISSING, Record, short_number

LEAST_AXIS, MOST_NAME = 24, 34
"""Least number of characters of the axis of steps, and most of the names beside it."""

MARKS = {"change": "─", "onset": "█", "end": "▒"}
"""Characters of the intervals in a drawing; later ones cover earlier ones."""


def findings_table(findings: Findings) -> Table:
    """Return a table of all intervals; a series without events has one row with its smallest detectable change."""
    several = len({series_key(limit)[:2] for limit in findings.limits}) > 1
    texts = (*(["run"] if several else []), "metric", "event")
    numbers = ("from step", "to step", "before", "after", "smallest detectable")
    table = plain_table((name, name in texts) for name in (*texts, *numbers))
    by_series = grouped_by(findings, series_key)
    for limit in findings.limits:
        rows = by_series.get(series_key(limit), [])
        name = _names(limit, several)
        smallest = MISSING if limit.get("missing") else short_number(limit["smallest_detectable"])
        if not rows:
            add_row(table, [*name, "no event", "", "", "", "", smallest], style="dim")
        for event in rows:
            values = (short_number(event["value_before"]), short_number(event["value_after"]))
            steps = (str(event["from_step"]), str(event["to_step"]))
            abrupt = "" if event["kind"] != "change" else "abrupt " if event["abrupt"] else "gradual "
            add_row(table, [*name, f"{abrupt}{event['kind']}", *steps, *values, smallest])
    return table


def findings_footnotes(findings: Findings) -> list[str]:
    """Return notes below the table: the error level, series that were not tested, and orders that are missing."""
    tested = [limit for limit in findings.limits if not limit.get("missing")]
    notes = []
    if tested:
        notes.append(
            f"each interval contains a change, with a family-wise error of {findings.level:.0%} over the intervals and "
            "metrics of a run; abrupt: within a factor of 2 in steps; smallest detectable: the jump in the middle of "
            "the run that would be reported in 90 % of the cases"
        )
    notes += [f"{listed(names)}: no events: {reason}" for reason, names in untested_names(findings).items()]
    absent = [f"{name_of(limit)} ({limit['absent']})" for limit in findings.limits if limit.get("absent")]
    if absent:
        notes.append(f"steps without a value, which are left out: {listed(list(dict.fromkeys(absent)), 12)}")
    notes += _unequal(findings.limits)
    seeds = {group: len({limit["seed"] for limit in findings.limits if limit["group"] == group})
             for group in dict.fromkeys(limit["group"] for limit in tested)}  # fmt: skip
    few = [f"{group} ({count})" for group, count in seeds.items() if count < FEWEST_SEEDS]
    if few and len(tested) > 1:
        notes.append(
            f"an order over seeds needs at least {FEWEST_SEEDS} of them (smallest p-value 0.031); seeds: {listed(few)}"
            "; disjoint intervals support an order in this run only"
        )
    for group, count in seeds.items():
        if count < FEWEST_SEEDS:
            continue
        of_group = [event for event in findings if event["group"] == group and event["kind"] == "onset"]
        onsets = {name: len(events) for name, events in grouped_by(of_group, name_of).items()}
        names = dict.fromkeys(name_of(limit) for limit in tested if limit["group"] == group)
        if partial := [f"{name} ({onsets.get(name, 0)})" for name in names if onsets.get(name, 0) < count]:
            notes.append(
                f"{group}: metrics with an onset in fewer than all {count} seeds are not in the order over seeds; "
                f"seeds with one: {listed(partial, 12)}"
            )
    return notes


def _unequal(limits: Iterable[Record]) -> Iterator[str]:
    """Yield a note about each run of a group that has no value of metrics of the others."""
    for of_group in grouped_by(limits, lambda limit: limit["group"]).values():
        names = dict.fromkeys(map(name_of, of_group))
        for run, of_run in grouped_by(of_group, run_name).items():
            if without := [name for name in names if name not in set(map(name_of, of_run))]:
                yield f"{run}: no value of {listed(without, 12)}, which other runs of the group have"


def findings_drawing(findings: Findings, width: int = 100) -> list[str]:
    """Return lines of text with the intervals of every series on one axis of steps, sorted by onset.

    Args:
        findings: The findings.
        width: Number of characters of a line.
    """
    by_series = grouped_by(findings, series_key)
    if not by_series:
        return []
    several = len({key[:2] for key in by_series}) > 1
    steps = [step for series in findings.series for step in (series.steps[0], series.steps[-1])]
    first = min(
        (float(series.steps[series.steps > 0][0]) for series in findings.series if series.steps[-1] > 0), default=1
    )
    full_names = {key: printable(" ".join(_names(rows[0], several))) for key, rows in by_series.items()}
    names = {key: shortened(name, MOST_NAME) for key, name in full_names.items()}
    margin = max(map(cell_len, names.values())) + 2
    axis = max(LEAST_AXIS, width - margin)
    low, high = (math.log(max(step, 0) + first) for step in (min(steps), max(steps)))

    def column(step: float) -> int:
        return round((math.log(max(step, 0) + first) - low) / max(high - low, 1e-9) * (axis - 1))

    lines = []
    for key in sorted(by_series, key=lambda key: _onset(by_series[key])):
        characters = ["·"] * axis
        for kind, mark in MARKS.items():
            for event in by_series[key]:
                if event["kind"] == kind:
                    start, stop = column(event["from_step"]), column(event["to_step"])
                    characters[start : stop + 1] = mark * (stop - start + 1)
        lines.append(f"{set_cell_size(names[key], margin)}{''.join(characters)}")
    start, end = f"step {min(steps):g}", f"{max(steps):g}"
    lines.append(f"{'':{margin}}{start}{end:>{max(1, axis - len(start))}}")
    legend = "█ onset   ▒ end   ─ change; step on a logarithmic axis"
    return [*lines, f"{'':{margin}}{legend}"]


def _names(record: Record, several: bool) -> list[str]:
    """Return the name of the series of an event or a limit, after that of its run if there are several runs."""
    return [*([run_name(record)] if several else []), name_of(record)]


def _onset(events: Iterable[Record]) -> tuple[bool, float]:
    return min((event["kind"] != "onset", float(event["from_step"])) for event in events)


def event_plot(run: str, findings: Findings) -> IntervalPlot | None:
    """Describe the plot of the events of a run or group; None without events.

    Args:
        run: Name of the run or group.
        findings: Its findings.
    """
    if not findings:
        return None
    by_name = grouped_by(findings, name_of)
    several = len({(event["group"], event["seed"]) for event in findings}) > 1
    bars = (
        Bar(name_of(e), e["kind"], e["from_step"], e["to_step"], event_sentence(e, of_runs=several)) for e in findings
    )
    steps = sorted({float(step) for series in findings.series for step in series.steps})
    meaning = f"Each interval contains a change, with an error of {findings.level:.0%} for all of them."
    rows = tuple(sorted(by_name, key=lambda name: _onset(by_name[name])))
    return IntervalPlot(f"events-{run}", run, meaning, axis_along("step", steps), rows, tuple(bars))

"""Describe plots of events: an interval for each, in rows of metrics sorted by onset."""

from collections.abc import Iterable, Mapping
from typing import Any

from ckpt_probe.findings import Findings
from ckpt_probe.findings.detection import name_of
from ckpt_probe.findings.sentences import event_sentence
from ckpt_probe.reporting.plots.description import Bar, IntervalPlot
from ckpt_probe.reporting.plots.metrics import axis_along


def event_plots(findings: Mapping[str, Findings]) -> Iterable[IntervalPlot]:
    """Yield a plot of the events of each run or group that has any.

    Args:
        findings: Findings by the name of the run or group.
    """
    for run, of_run in findings.items():
        rows = sorted_rows(of_run)
        several = len({(event["group"], event["seed"]) for event in of_run}) > 1
        if rows:
            bars = [
                Bar(
                    name_of(event),
                    event["kind"],
                    event["from_step"],
                    event["to_step"],
                    event_sentence(event, of_runs=several),
                )
                for event in of_run
            ]
            steps = sorted({float(step) for series in of_run.series for step in series.steps})
            yield IntervalPlot(
                f"events-{run}",
                run,
                f"Each interval contains a change, with an error of {of_run.level:.0%} for all of them.",
                axis_along("step", steps),
                tuple(rows),
                tuple(bars),
            )


def sorted_rows(events: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the names of the series with events, that with the earliest onset first; those without one come last."""
    onsets: dict[str, tuple[bool, float]] = {}
    for event in events:
        name, key = name_of(event), (event["kind"] != "onset", float(event["from_step"]))
        onsets[name] = min(onsets.get(name, key), key)
    return sorted(onsets, key=lambda name: onsets[name])

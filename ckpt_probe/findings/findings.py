"""Findings about runs: their events, the smallest detectable changes, and the order of onsets."""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from ckpt_probe.analysis.records import Records
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.findings.detection import LEVEL, find_events
from ckpt_probe.findings.order import FEWEST_SEEDS, order_in_run, order_over_seeds
from ckpt_probe.findings.series import Series, names_in, read_runs, series_of
from ckpt_probe.groups import Sources
from ckpt_probe.keywords import as_paths, as_sequence
from ckpt_probe.moments.selection import find_metrics, suggest_metrics
from ckpt_probe.progress import NullProgress, Progress

Record = dict[str, Any]


class Findings(Records):
    """Events of runs, one record each, with the noise of every series and the order of onsets.

    Args:
        events: Records of the events.
        limits: One record per series: its noise, its smallest detectable change, and why it has no events.
        orders: Orders that the runs support: over the seeds of a group, or within a run.
        series: The series, in the order of `limits`.
        level: Family-wise error over the intervals and series of a run.
    """

    def __init__(
        self,
        events: Sequence[Record],
        limits: Sequence[Record],
        orders: Sequence[Record],
        series: Sequence[Series],
        level: float = LEVEL,
    ) -> None:
        super().__init__(events)
        self.level = level
        self.limits = list(limits)
        self.orders = list(orders)
        self.series = list(series)


def events(
    sources: Sources = (),
    *,
    groups: Mapping[str, Path | str | Sequence[Path | str]] | None = None,
    metrics: str | Sequence[str] = (),
    splits: str | Sequence[str] = (),
    level: float = LEVEL,
    progress: Progress | None = None,
) -> Findings:
    """Find when metrics of runs change, each with an interval of steps, and the order of their onsets.

    Args:
        sources: Runs: files of records (.jsonl; .csv or .parquet with a column `step`), dumps, or directories of these;
            a directory with one run per seed is a group, and NAME=PATTERN the group of the paths that match.
        groups: Directories with one run per seed, or the paths of runs, by the name of the group.
        metrics: Names, labels or patterns of metrics; all if empty.
        splits: Splits; all if empty.
        level: Family-wise error over the intervals and metrics of a run.
        progress: Receives messages and bars.

    Returns:
        One record per event: `kind` ("change", "onset" or "end"), `metric`, `from_step`, `to_step`, and for a change
        `abrupt`; and as attributes `limits` and `orders`.

    Raises:
        DataError: If a source cannot be read, or has no records with a step.
        UsageError: If there is no source, or an argument is invalid.
    """
    names = as_sequence(metrics) or ()
    sources = sources if isinstance(sources, Mapping) else as_paths(sources)
    if not sources and not groups:
        raise UsageError("events needs records or dumps, such as records.jsonl, or a group of runs")
    progress = progress or NullProgress()
    records = read_runs(sources, groups or {}, progress)
    existing = names_in(chain(*records.values()))
    if unknown := next((name for name in find_metrics(names, existing) if name not in existing), None):
        raise DataError(f"events: no metric {unknown!r}{suggest_metrics(unknown, existing)}")
    series = {
        key: series_of(rows, metrics=names, splits=as_sequence(splits) or (), group=key[0], seed=key[1])
        for key, rows in records.items()
    }
    if not any(series.values()):
        raise DataError("events: the records have no numbers beside the step")
    for (group, seed), of_run in series.items():
        if not of_run:
            progress.message(f"{group}: {seed} has no value of these metrics and is left out")
    return findings_of(series, level, progress)


def findings_of(
    series: Mapping[tuple[str, str], Sequence[Series]], level: float = LEVEL, progress: Progress | None = None
) -> Findings:
    """Find the events of series by group and seed, and their order.

    Args:
        series: Series of each run.
        level: Family-wise error over the intervals and series of a run.
        progress: Receives a bar.
    """
    events_of, limits = {}, []
    with (progress or NullProgress()).task("events", len(series), "runs") as bar:
        for key, of_run in series.items():
            events_of[key], of_limits = find_events(of_run, level)
            limits += of_limits
            bar.advance()
    orders: list[Record] = []
    for group in dict.fromkeys(group for group, _ in series):
        keys = [key for key in series if key[0] == group]
        if len(keys) >= FEWEST_SEEDS:
            orders += order_over_seeds({key[1]: series[key] for key in keys}, {key[1]: events_of[key] for key in keys})
        else:
            orders += [order for key in keys for order in order_in_run(series[key], events_of[key])]
    return Findings([*chain(*events_of.values())], limits, orders, [*chain(*series.values())], level)

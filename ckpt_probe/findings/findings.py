"""Findings about runs: their events, the smallest detectable changes and the order of onsets, also as sentences.

No sentence lacks support, and each states its interval.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

from ckpt_probe.analysis.records import Records, grouped_by, metric_names
from ckpt_probe.errors import DataError, UsageError, listed
from ckpt_probe.findings.detection import FEWEST, LEVEL, find_events, name_of
from ckpt_probe.findings.order import FEWEST_SEEDS, order_in_run, order_over_seeds
from ckpt_probe.findings.series import Series, names_in, read_runs, series_of
from ckpt_probe.groups import Sources
from ckpt_probe.keywords import as_paths, as_sequence
from ckpt_probe.moments.selection import find_metrics, suggest_metrics
from ckpt_probe.progress import NullProgress, Progress

Record = dict[str, Any]
Finding = Mapping[str, Any]
"""Record of an event, of a limit or of an order."""

READ = ("accuracy", "loss", "nc1.pinv", "nc2.etf", "nc3.duality", "class.mir", "class.hdr", "within.entropy_mean")
"""Metrics of the plain-language reading of a run; `events` tests all."""

LEVEL_OF_LOOK = 0.005
"""Family-wise error of one look: a run that is still training is looked at many times."""

OFTEN, GROWTH = 40, 1.05
"""Number of checkpoints up to which each is a look; beyond it, the number grows by this factor between looks."""

Sighting = tuple[str, str, float, float]
"""Series, kind, and both ends of an interval."""


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


def main_findings(name: str, runs: Mapping[str, Iterable[Record]], level: float = LEVEL) -> Findings:
    """Return the findings about the main metrics of the runs of a group, or about all if a run has none of these.

    Args:
        name: Name of the group, or of a single run.
        runs: Records of each run by its name; those without a step are left out.
        level: Family-wise error over the intervals and metrics of a run.
    """
    series = {}
    for seed, records in runs.items():
        records = list(records)
        present = metric_names(records)
        names = [metric for metric in READ if metric in present]
        # No steps, or several records at one step, as of a pruned series, are no course of training.
        with suppress(DataError):
            series[name, seed] = series_of(records, metrics=names, group=name, seed=seed)
    return findings_of(series, level)


def read_group(findings: Findings) -> list[str]:
    """Return the findings about several runs of a group as sentences: onsets and ends that all have, and their order.

    Args:
        findings: Findings of one group.
    """
    seeds = {limit["seed"] for limit in findings.limits}
    in_all = f"In each of the {len(seeds)} runs" if len(seeds) > 1 else "In its only run"
    sentences = []
    for name in dict.fromkeys(name_of(limit) for limit in findings.limits):
        for kind, text in (("onset", "left its initial level"), ("end", "reached its final level")):
            events = [event for event in findings if event["kind"] == kind and name_of(event) == name]
            if len(events) == len(seeds):
                start, stop = min(e["from_step"] for e in events), max(e["to_step"] for e in events)
                sentences.append(f"{in_all}, {name} {text} between steps {start} and {stop}.")
    orders = [each for each in findings.orders if each.get("relation") not in (None, "undecided")]
    return [*sentences, *map(order_sentence, orders)]


def read_findings(findings: Findings, *, of_runs: bool = False) -> list[str]:
    """Return the findings as sentences, each with its interval; unsupported ones are left out.

    Each metric has one sentence about its events. Metrics without an event have one together, with the smallest change
    that would have been reported; series that were not tested have one with the reason.

    Args:
        findings: The findings.
        of_runs: Whether each sentence names its run.
    """
    by_series = grouped_by(findings, series_key)
    sentences = [
        f"{_run(events[0], of_runs)}{name_of(events[0])} {'; '.join(map(_clause, events))}."
        for events in by_series.values()
    ]
    sentences += [
        order_sentence(each, of_runs=of_runs) for each in findings.orders if each.get("relation") != "undecided"
    ]
    quiet = [limit for limit in findings.limits if not limit["missing"] and series_key(limit) not in by_series]
    if quiet:
        named = [f"{name_of(limit)} ({_short(limit['smallest_detectable'])})" for limit in quiet]
        sentences.append(f"No event (smallest change that would be reported): {listed(named, 12)}.")
    untested = untested_names(findings).items()
    return sentences + [f"No events are reported of {listed(names, 12)}: {reason}." for reason, names in untested]


def event_sentence(event: Finding, *, of_runs: bool = False) -> str:
    """Return the sentence of an event, which states its interval.

    Args:
        event: Record of the event.
        of_runs: Whether the sentence names the run.
    """
    return f"{_run(event, of_runs)}{name_of(event)} {_clause(event)}."


def _clause(event: Finding) -> str:
    between = f"between steps {event['from_step']} and {event['to_step']}"
    values = f"{_short(event['value_before'])} → {_short(event['value_after'])}"
    return {
        "change": f"changed {'abruptly' if event.get('abrupt') else 'gradually'} {between} ({values})",
        "onset": f"left its initial level {between}",
        "end": f"reached its final level {between}",
    }[event["kind"]]


def order_sentence(order: Finding, *, of_runs: bool = False) -> str:
    """Return the sentence of a relation of two onsets.

    Args:
        order: Record of the relation.
        of_runs: Whether the sentence names the run or group.
    """
    first, second = order["before"], order["after"]
    if "relation" not in order:
        return (
            f"{_run(order, of_runs) or 'In this run, '}{first} left its initial level by step {order['first_by']}, "
            f"before {second} did (after step {order['second_from']})."
        )
    group = f"{order['group']}: " if of_runs else ""
    if order["relation"] == "one process":
        return f"{group}{first} and {second} follow one curve: no order, since they may be two scales of one process."
    factor, seeds = order["lag_factor"], order["seeds"]
    if order["relation"] == "undecided":
        return f"{group}the {seeds} seeds support no order of {first} and {second} (p = {order['p_value']:.2g})."
    return (
        f"{group}{first} moves before {second}: its onset is earlier by a factor of {factor:.3g} in steps over {seeds} "
        f"seeds (p = {order['p_value']:.2g}; noise alone produces {order['noise_lag_factor']:.3g})."
    )


def untested_names(findings: Findings) -> dict[str, list[str]]:
    """Return the names of the series that were not tested, by the reason."""
    reasons = grouped_by((limit for limit in findings.limits if limit["missing"]), itemgetter("missing"))
    return {reason: list(dict.fromkeys(map(name_of, limits))) for reason, limits in reasons.items()}


def series_key(record: Finding) -> tuple[str, str, str]:
    """Return group, seed and name of the series of an event or a limit."""
    return str(record["group"]), str(record["seed"]), name_of(record)


def run_name(record: Finding) -> str:
    """Return the name of the run of an event: its seed, with its group if it belongs to one."""
    return record["seed"] if record["seed"] == record["group"] else f"{record['group']}/{record['seed']}"


def _run(record: Finding, of_runs: bool) -> str:
    return f"{run_name(record)}: " if of_runs else ""


def _short(value: float) -> str:
    return f"{value:.4g}"


class EventWatch:
    """Report the events of a growing run once each."""

    def __init__(self) -> None:
        self._reported: list[Sighting] = []
        self._looked: dict[str, int] = {}

    def look(self, split: str, records: Sequence[Record]) -> list[str]:
        """Return sentences about the new events in the records of one split so far.

        Args:
            split: Name of the split.
            records: Its records.
        """
        count, before = len(records), self._looked.get(split, 0)
        if count < FEWEST or (count > OFTEN and count < GROWTH * before):
            return []
        self._looked[split] = count
        events = main_findings("", {"": records}, LEVEL_OF_LOOK)
        named = [(name_of(event), event["kind"], event["from_step"], event["to_step"]) for event in events]
        return self.unreported(zip(named, map(event_sentence, events), strict=True))

    def unreported(self, events: Iterable[tuple[Sighting, str]]) -> list[str]:
        """Return the sentences of events that overlap no reported one of their series and kind.

        Args:
            events: Each event with its sentence.
        """
        sentences = []
        for (name, kind, start, stop), sentence in events:
            if not any(
                (name, kind) == (other, its_kind) and start < its_stop and its_start < stop
                for other, its_kind, its_start, its_stop in self._reported
            ):
                self._reported.append((name, kind, start, stop))
                sentences.append(sentence)
        return sentences

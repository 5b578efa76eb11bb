"""Findings as sentences, each with its interval, also of a run that is still training; no sentence lacks support."""

from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from ckpt_probe.analysis.records import finite, grouped_by, metric_names
from ckpt_probe.errors import DataError, listed
from ckpt_probe.findings.detection import FEWEST, LEVEL, name_of
from ckpt_probe.findings.findings import Findings, findings_of
from ckpt_probe.findings.series import series_of

Record = Mapping[str, Any]

READ = ("accuracy", "loss", "nc1.pinv", "nc2.etf", "nc3.duality", "class.mir", "class.hdr", "within.entropy_mean")
"""Metrics of the plain-language reading of a run; `events` tests all."""


def main_findings(name: str, runs: Mapping[str, Iterable[Record]], level: float = LEVEL) -> Findings:
    """Return the findings about the main metrics of the runs of a group, or about all if a run has none of these.

    Args:
        name: Name of the group, or of a single run.
        runs: Records of each run by its name; those without a step are left out.
        level: Family-wise error over the intervals and metrics of a run.
    """
    series = {}
    for seed, records in runs.items():
        stepped = [record for record in records if finite(record.get("step")) is not None]
        if not stepped:
            continue
        present = metric_names(stepped)
        names = [metric for metric in READ if metric in present]
        try:
            series[name, seed] = series_of(stepped, metrics=names, group=name, seed=seed)
        except DataError:
            # Several records at one step, as of a pruned series, are no course of training.
            continue
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


def event_sentence(event: Record, *, of_runs: bool = False) -> str:
    """Return the sentence of an event, which states its interval.

    Args:
        event: Record of the event.
        of_runs: Whether the sentence names the run.
    """
    return f"{_run(event, of_runs)}{name_of(event)} {_clause(event)}."


def _clause(event: Record) -> str:
    between = f"between steps {event['from_step']} and {event['to_step']}"
    values = f"{_short(event['value_before'])} → {_short(event['value_after'])}"
    return {
        "change": f"changed {'abruptly' if event.get('abrupt') else 'gradually'} {between} ({values})",
        "onset": f"left its initial level {between}",
        "end": f"reached its final level {between}",
    }[event["kind"]]


def order_sentence(order: Record, *, of_runs: bool = False) -> str:
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


def series_key(record: Record) -> tuple[str, str, str]:
    """Return group, seed and name of the series of an event or a limit."""
    return str(record["group"]), str(record["seed"]), name_of(record)


def run_name(record: Record) -> str:
    """Return the name of the run of an event: its seed, with its group if it belongs to one."""
    return record["seed"] if record["seed"] == record["group"] else f"{record['group']}/{record['seed']}"


def _run(record: Record, of_runs: bool) -> str:
    return f"{run_name(record)}: " if of_runs else ""


def _short(value: float) -> str:
    return f"{value:.4g}"


LEVEL_OF_LOOK = 0.005
"""Family-wise error of one look: a run that is still training is looked at many times."""

OFTEN, GROWTH = 40, 1.05
"""Number of checkpoints up to which each is a look; beyond it, the number grows by this factor between looks."""

Sighting = tuple[str, str, float, float]
"""Series, kind, and both ends of an interval."""


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

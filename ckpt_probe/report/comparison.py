"""Comparisons of groups as a table that a person can read."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from ckpt_probe.analysis import Comparison
from ckpt_probe.errors import printable
from ckpt_probe.report.table import MISSING, short_number

PADDING = 2


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Return a table of one row a metric and group, each interval with the confidence that it can reach."""
    table = Table(box=None, pad_edge=False, padding=(0, PADDING, 0, 0), header_style="bold", show_edge=False)
    for name in ("metric", "group"):
        table.add_column(name, no_wrap=True)
    for name in ("seeds", "mean", "std", "difference", "interval", "confidence"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    before = None
    for one in comparisons:
        table.add_row(
            # As plain text: names of anybody's may look like markup.
            Text(printable(one.metric) if one.metric != before else ""),
            Text(printable(one.group)),
            str(one.seeds),
            short_number(one.mean),
            _number(one.deviation),
            *(("", "", "") if one.pairs is None else (_signed(one.difference), _interval(one), _confidence(one))),
            one.verdict,
            style="dim" if one.pairs is None else None,
        )
        before = one.metric
    return table


def comparison_footnotes(comparisons: Sequence[Comparison]) -> list[str]:
    """What the table cannot say: where and how it was measured, what is missing and what the intervals cannot hold."""
    if not comparisons:
        return []
    first = comparisons[0]
    steps = {one.step for one in comparisons}
    step = f"step {steps.pop()}" if len(steps) == 1 and None not in steps else "each entry's own step"
    how = f"bootstrap of {first.resamples} resamples, seed {first.seed}, expanded for few seeds"
    notes = [
        f"{first.split} at {step}; differences from {first.baseline} of entries of the same name; "
        f"intervals of the mean difference: {how if first.interval == 'bootstrap' else 'Student’s t'}"
    ]
    for one in comparisons:
        if one.note:
            notes.append(f"{MISSING} {one.group}: {one.note}")
        if one.coverage_at_most is not None:
            held, most = _percent(one.confidence), _percent(one.coverage_at_most)
            notes.append(
                f"{one.group}: with {one.pairs} pairs no interval by resampling holds {held}, at most {most}; "
                "take more seeds, or --interval t, which assumes normal differences"
            )
    return list(dict.fromkeys(notes))


def _percent(share: float) -> str:
    return f"{100 * share:.6g} %"


def _interval(one: Comparison) -> str:
    return MISSING if one.low is None or one.high is None else f"[{_signed(one.low)}, {_signed(one.high)}]"


def _confidence(comparison: Comparison) -> str:
    if comparison.low is None:
        return MISSING
    most = comparison.coverage_at_most
    return _percent(comparison.confidence) if most is None else f"at most {_percent(most)}"


def _signed(value: float | None) -> str:
    return MISSING if value is None else f"{'+' if value > 0 else ''}{short_number(value)}"


def _number(value: float | None) -> str:
    return MISSING if value is None else short_number(value)

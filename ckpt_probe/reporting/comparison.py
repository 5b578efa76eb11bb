"""Table of comparisons between groups of runs."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from ckpt_probe.analysis import Comparison
from ckpt_probe.errors import printable
from ckpt_probe.reporting.table import MISSING, short_number

PADDING = 2


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Return a table with one row per metric and group; each interval has the confidence that it can reach."""
    table = Table(box=None, pad_edge=False, padding=(0, PADDING, 0, 0), header_style="bold", show_edge=False)
    for name in ("metric", "group"):
        table.add_column(name, no_wrap=True)
    for name in ("seeds", "mean", "std", "difference", "interval", "confidence"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    before = None
    for comparison in comparisons:
        table.add_row(
            # As plain text: names in a file may look like markup.
            Text(printable(comparison.metric) if comparison.metric != before else ""),
            Text(printable(comparison.group)),
            str(comparison.seeds),
            short_number(comparison.mean),
            _number(comparison.deviation),
            *_difference_cells(comparison),
            comparison.verdict,
            style="dim" if comparison.pairs is None else None,
        )
        before = comparison.metric
    return table


def comparison_footnotes(comparisons: Sequence[Comparison]) -> list[str]:
    """Return notes below the table: split, step and method, missing values, and limits of the intervals."""
    if not comparisons:
        return []
    first = comparisons[0]
    steps = {comparison.step for comparison in comparisons}
    step = f"step {steps.pop()}" if len(steps) == 1 and None not in steps else "each entry's own step"
    how = f"bootstrap of {first.resamples} resamples, seed {first.seed}, expanded for few seeds"
    notes = [
        f"{first.split} at {step}; differences from {first.baseline} of entries of the same name; "
        f"intervals of the mean difference: {how if first.interval == 'bootstrap' else 'Student’s t'}"
    ]
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


def _difference_cells(comparison: Comparison) -> tuple[str, str, str]:
    if comparison.pairs is None:
        return "", "", ""
    return _signed(comparison.difference), _interval(comparison), _confidence(comparison)


def _percent(share: float) -> str:
    return f"{100 * share:.6g} %"


def _interval(comparison: Comparison) -> str:
    if comparison.low is None or comparison.high is None:
        return MISSING
    return f"[{_signed(comparison.low)}, {_signed(comparison.high)}]"


def _confidence(comparison: Comparison) -> str:
    if comparison.low is None:
        return MISSING
    most = comparison.coverage_at_most
    return _percent(comparison.confidence) if most is None else f"at most {_percent(most)}"


def _signed(value: float | None) -> str:
    return MISSING if value is None else f"{'+' if value > 0 else ''}{short_number(value)}"


def _number(value: float | None) -> str:
    return MISSING if value is None else short_number(value)

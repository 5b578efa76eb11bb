"""Table of comparisons between groups of runs."""

from collections.abc import Sequence

from rich.table import Table

from ckpt_probe.analysis import Comparison
from ckpt_probe.reporting.table import MISSING, add_row, plain_table
from ckpt_probe.reporting.uncertain import short_number


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
        numbers = (str(comparison.seeds), short_number(comparison.mean), _number(comparison.deviation))
        cells = [*numbers, *_difference_cells(comparison, at_loss), verdict_text(comparison)]
        metric = comparison.metric if comparison.metric != before else ""
        add_row(table, [metric, comparison.group, *cells], style="dim" if comparison.pairs is None else None)
        before = comparison.metric
    return table


def verdict_text(comparison: Comparison) -> str:
    """Return the verdict with its direction, the first step, and the relation to the value at collapse."""
    details = [
        *([comparison.direction] if comparison.direction else []),
        *([f"from step {comparison.differs_from} on"] if comparison.differs_from is not None else []),
        *([f"{comparison.collapse} {'to' if comparison.collapse == 'nearer' else 'from'} collapse"]
          if comparison.collapse else []),
    ]  # fmt: skip
    return f"{comparison.verdict}: {', '.join(details)}" if details else comparison.verdict


def comparison_footnotes(comparisons: Sequence[Comparison]) -> list[str]:
    """Return notes below the table: split, step and method, missing values, and limits of the intervals."""
    if not comparisons:
        return []
    first = comparisons[0]
    displayed = _last_of_each(comparisons)
    steps = {comparison.step for comparison in comparisons}
    step = f"step {steps.pop()}" if len(steps) == 1 and None not in steps else "each entry's own step"
    if len(displayed) < len(comparisons):
        step = f"{len(steps)} steps, of which the table has the last"
    at_loss = first.loss_low is not None
    if at_loss:
        step = f"equal loss, from {_number(first.loss_high)} to {_number(first.loss_low)}"
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


def _last_of_each(comparisons: Sequence[Comparison]) -> list[Comparison]:
    return list({(each.metric, each.group): each for each in comparisons}.values())


def _margins(comparisons: Sequence[Comparison]) -> str:
    margins = {each.metric: each.margin for each in comparisons if each.tests}
    return ", ".join(
        f"{metric} {'unknown: one step, no range' if not margin else short_number(margin)}"
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
    if at_loss:
        return [signed(comparison.difference), _number(comparison.loss), _interval(comparison)]
    return [signed(comparison.difference), _interval(comparison), _confidence(comparison)]


def _percent(share: float) -> str:
    return f"{100 * share:.6g} %"


def _interval(comparison: Comparison) -> str:
    if comparison.low is None or comparison.high is None:
        return MISSING
    return f"[{signed(comparison.low)}, {signed(comparison.high)}]"


def _confidence(comparison: Comparison) -> str:
    if comparison.low is None:
        return MISSING
    most = comparison.coverage_at_most
    return _percent(comparison.confidence) if most is None else f"at most {_percent(most)}"


def signed(value: float | None) -> str:
    """Return a difference with its sign; a dash for None."""
    return MISSING if value is None else f"{'+' if value > 0 else ''}{short_number(value)}"


def _number(value: float | None) -> str:
    return MISSING if value is None else short_number(value)

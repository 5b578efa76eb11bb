"""Tables of examples, and of the comparisons of checkpoints and runs by their predictions."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from ckpt_probe.analysis.records import grouped_by
from ckpt_probe.errors import printable
from ckpt_probe.reporting.table import MISSING, add_row, plain_table
from ckpt_probe.reporting.uncertain import short_number

Record = Mapping[str, Any]

HEADINGS = {
    "example": {
        "index": "index",
        "name": "name",
        "class": "class",
        "class_name": "class name",
        "first_learned": "first learned",
        "forgotten": "forgotten",
        "never_learned": "never learned",
        "predicted": "predicted",
        "loss": "loss",
    },
    "class": {
        "class": "class",
        "class_name": "class name",
        "samples": "examples",
        "learned": "learned",
        "never_learned": "never learned",
        "forgotten": "forgotten",
        "forgetting_events": "times forgotten",
        "first_learned.histogram": "first learned",
        "forgotten.histogram": "times forgotten:examples",
    },
    "step": {
        "checkpoint": "checkpoint",
        "step": "step",
        "accuracy": "acc",
        "function.disagreement": "disagreement",
        "function.divergence": "divergence",
        "function.error_agreement": "error agreement",
        "function.learned": "learned",
        "function.forgotten": "forgotten",
    },
    "run": {
        "other": "other run",
        "accuracy": "acc",
        "other_accuracy": "other acc",
        "function.disagreement": "disagreement",
        "function.divergence": "divergence",
        "function.error_agreement": "error agreement",
        "churn.wins": "wins",
        "churn.losses": "losses",
    },
}
"""Columns of the table of each kind of record, after its run and split; those without any value are left out."""

TEXTS = frozenset({"run", "split", "name", "class_name", "checkpoint", "other"})
LONGEST = 40


def examples_table(records: Sequence[Record], by: str) -> Table:
    """Return a table of records of `examples`, without columns that have no value.

    Args:
        records: The records.
        by: Kind of the records, as for `examples`.
    """
    columns = {"run": "run", "split": "split", **HEADINGS[by]}
    present = {key: label for key, label in columns.items() if any(record.get(key) is not None for record in records)}
    headings = ((label, key in TEXTS or "histogram" in key) for key, label in present.items())
    table = plain_table(headings, no_wrap=False)
    for record in records:
        add_row(table, (_cell(record.get(key)) for key in present))
    return table


def summaries(records: Sequence[Record]) -> list[str]:
    """Return a sentence for each run and split on its records of examples."""
    return [
        printable(
            f"{' '.join(str(name) for name in names if name is not None)}: {len(group):,} examples: "
            f"{sum(record['first_learned'] is not None for record in group):,} learned for good, "
            f"{sum(record['never_learned'] for record in group):,} never learned, "
            f"{sum(bool(record['forgotten']) for record in group):,} forgotten at least once"
        )
        for names, group in grouped_by(records, _run_and_split).items()
    ]


def first_of_each(records: Sequence[Record], most: int) -> list[Record]:
    """Return the first records of each run and split, at most `most` of each."""
    return [record for group in grouped_by(records, _run_and_split).values() for record in group[:most]]


def _run_and_split(record: Record) -> tuple[Any, Any]:
    return record.get("run"), record["split"]


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return short_number(value)
    if value is None:
        return MISSING
    text = printable(str(value))
    return text if len(text) <= LONGEST else f"…{text[1 - LONGEST :]}" if "/" in text else f"{text[: LONGEST - 1]}…"

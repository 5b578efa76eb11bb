"""Tables of examples, and of the comparisons of checkpoints and runs by their predictions."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from ckpt_probe.analysis.records import grouped_by
from ckpt_probe.errors import printable
from ckpt_probe.reporting.table import add_row, plain_table
from ckpt_probe.reporting.uncertain import short_number

Record = Mapping[str, Any]

COLUMNS = {
    "example": "index name class class_name first_learned forgotten never_learned predicted loss",
    "class": "class class_name samples learned never_learned forgotten forgetting_events first_learned.histogram "
    "forgotten.histogram",
    "step": "checkpoint step accuracy function.disagreement function.divergence function.error_agreement "
    "function.learned function.forgotten",
    "run": "other accuracy other_accuracy function.disagreement function.divergence function.error_agreement "
    "churn.wins churn.losses",
}
"""Columns of the table of each kind of record, after its run and split; those without any value are left out."""

HEADINGS = {
    "samples": "examples",
    "forgetting_events": "times forgotten",
    "first_learned.histogram": "first learned",
    "forgotten.histogram": "times forgotten:examples",
    "accuracy": "acc",
    "other": "other run",
    "other_accuracy": "other acc",
}
"""Headings of columns that are not the last part of their name."""

TEXTS = frozenset({"run", "split", "name", "class_name", "checkpoint", "other"})
LONGEST = 40


def examples_table(records: Sequence[Record], by: str) -> Table:
    """Return a table of records of `examples`, without columns that have no value.

    Args:
        records: The records.
        by: Kind of the records, as for `examples`.
    """
    columns = ["run", "split", *COLUMNS[by].split()]
    present = [name for name in columns if any(record.get(name) is not None for record in records)]
    headings = (HEADINGS.get(name, name.rpartition(".")[2].replace("_", " ")) for name in present)
    are_texts = (name in TEXTS or "histogram" in name for name in present)
    table = plain_table(zip(headings, are_texts, strict=True), no_wrap=False)
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
    if value is None or isinstance(value, float):
        return short_number(value)
    text = printable(str(value))
    return text if len(text) <= LONGEST else f"…{text[1 - LONGEST :]}" if "/" in text else f"{text[: LONGEST - 1]}…"

"""Tables of records: of `analyze`, fitted to the width of the terminal, and of `examples`; the list of all metrics."""

from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from ckpt_probe.analysis.entries import (
    BIAS,
    CONFUSION,
    GROUP_AND_SEED,
    NAMED_CONFUSION,
    POSITION,
    STDERR,
    split_reasons,
)
from ckpt_probe.analysis.records import grouped_by
from ckpt_probe.errors import listed, printable, shortened
from ckpt_probe.moments.registry import DEFAULT, FAMILIES, GROUPS, METRICS, Metric
from ckpt_probe.moments.selection import all_metrics, metric_named, metrics_in, values_at_collapse
from ckpt_probe.reporting.wording import MISSING, Record, error_of, number_with_error, short_number

PADDING = 2
MOST_WORDS = 3
NO_ERROR, NO_BIAS = "no standard error", "no bias"
LEFT = frozenset({*GROUP_AND_SEED, "checkpoint", "split", "block", "tensor", "layer", "class_name"})
OF_SERIES = ("audit.", "motion.", "spectrum.")
"""Prefixes of numbers without a value at collapse."""
SPREAD = frozenset(metric.name for metric in METRICS if metric.family in {"nc1", "within"})
"""Metrics that are lower if a class has only one sample, which has no spread."""


LIST_HEAD = "Families of metrics for `only=`, with their cost for N samples of D features and C classes:"


def plain_table(columns: Iterable[tuple[str, bool]], *, no_wrap: bool = True) -> Table:
    """Return an empty table without lines.

    Args:
        columns: Heading of each column, and whether its cells are texts, aligned to the left.
        no_wrap: Whether a cell stays on one line.
    """
    table = Table(box=None, pad_edge=False, padding=(0, PADDING, 0, 0), header_style="bold", show_edge=False)
    for name, is_text in columns:
        table.add_column(Text(name), justify="left" if is_text else "right", no_wrap=no_wrap)
    return table


def add_row(table: Table, cells: Iterable[str], *, style: str | None = None) -> None:
    """Add a row of plain text: names in a file may look like markup."""
    table.add_row(*(Text(printable(cell)) for cell in cells), style=style)


def records_table(records: Sequence[Record], *, width: int | None = None, hint: str = "") -> Table:
    """Return a table with one row per record, metrics in columns, and the values at collapse in the last row.

    Args:
        records: Records to show.
        width: Width of the terminal in characters. Columns of low priority that do not fit are left out, and the
            caption contains their number; None shows all columns.
        hint: End of this caption, about how to see the other columns.
    """
    identifiers = [name for name in POSITION if any(record.get(name) is not None for record in records)]
    if width is not None and "step" in identifiers and "checkpoint" in identifiers:
        # Steps may be equal, as in a pruned series; then only the names distinguish the checkpoints.
        identifiers.remove("checkpoint" if _count(records, "step") == _count(records, "checkpoint") else "step")
    # Errors are printed with their numbers.
    present = [metric for metric in metrics_in(records) if not metric.name.endswith(STDERR)]
    cells = _fitting(records, identifiers, present, width)
    columns = [metric for metric in present if metric.name in cells]
    headings = [(name, name in LEFT) for name in identifiers] + [(metric.label, False) for metric in columns]
    table = plain_table(headings)
    for row, record in enumerate(records):
        positions = [_identifier(record.get(name)) for name in identifiers]
        add_row(table, [*positions, *(cells[metric.name][row] for metric in columns)])
    label = ["at collapse", *[""] * (len(identifiers) - 1)]
    if len(identifiers) > 1 and identifiers[0] != "checkpoint":
        label = [*[""] * (len(identifiers) - 1), "collapse"]
    if any(not metric.name.startswith(OF_SERIES) for metric in columns):
        table.add_row(*label, *(cells[metric.name][-1] for metric in columns), style="dim")
    hidden = len(present) - len(columns)
    if hidden:
        table.caption = Text(f"{hidden} more columns{hint}", style="dim")
        table.caption_justify = "left"
    return table


def footnotes(records: Sequence[Record]) -> list[str]:
    """Return notes below a table, without repetition: samples and classes left out, and reasons of missing values."""
    notes = grouped_by(((note, _where(record)) for record in records for note in _notes(record)), itemgetter(0))
    plain = [f"{note} [{listed([where for _, where in pairs], 3)}]" for note, pairs in notes.items()]
    return [*plain, *_notes_of_errors(records)]


def _notes_of_errors(records: Sequence[Record]) -> list[str]:
    """Return one note for each reason of missing errors and biases, with the metrics and records that it is about."""
    kinds: dict[tuple[str, str], dict[str, None]] = {}
    rows: dict[str, dict[str, None]] = {}
    for record in records:
        for names, reason in split_reasons(record):
            for name in (name for name in names if name.endswith((STDERR, BIAS))):
                kind = NO_ERROR if name.endswith(STDERR) else NO_BIAS
                kind = kind if record.get(name) is None else kind.removeprefix("no ")
                metric = name.removesuffix(STDERR).removesuffix(BIAS)
                kinds.setdefault((reason, metric), {})[kind] = None
                rows.setdefault(reason, {})[_where(record)] = None
    notes = grouped_by(kinds, lambda key: (" or ".join(kinds[key]).replace("or no ", "or "), key[0]))
    return [
        f"{MISSING} {kind} of {', '.join(label_of(name) for _, name in keys)}: {reason} [{listed([*rows[reason]], 3)}]"
        for (kind, reason), keys in notes.items()
    ]


def label_of(name: str, *, with_name: bool = False) -> str:
    """Return the short label of a metric, followed by its name if `with_name` is set; the name if it is unknown."""
    metric = metric_named(name)
    return name if metric is None else f"{metric.label} ({name})" if with_name else metric.label


def _notes(record: Record) -> Iterator[str]:
    if record.get("samples_left_out"):
        reason = "zero-length features or classifier weights, which have no direction"
        yield f"{record['samples_left_out']} of {record['samples']} samples left out ({reason})"
    if record.get("classes_left_out"):
        yield f"{record['classes_left_out']} of {record['classes']} classes left out ({_reasons_of_classes(record)})"
    single = record.get("classes_of_one_sample")
    if single and SPREAD & record.keys():
        classes = record["classes_present"] - (record.get("classes_below_min_samples") or 0)
        yield (
            f"{single} of {classes} classes have one sample and so no spread, which lowers NC1, CDNV and H within; "
            "`min_samples=2` leaves these classes out of the class means"
        )
    without_errors = [
        ([name for name in names if not name.endswith((STDERR, BIAS))], reason)
        for names, reason in split_reasons(record)
    ]
    if missing := [f"{', '.join(names)}{reason and f': {reason}'}" for names, reason in without_errors if names]:
        yield f"{MISSING} missing: {'; '.join(missing)}"


def _reasons_of_classes(record: Record) -> str:
    """Return the reasons for which classes are left out, with the number of classes for each."""
    present, below = record.get("classes_present"), record.get("classes_below_min_samples") or 0
    absent = 0 if present is None else record["classes"] - present
    directionless = record["classes_left_out"] - absent - below
    reasons = {
        "no sample": absent,
        "fewer samples than `min_samples`": below,
        "a class mean or classifier weights of zero length": directionless,
    }
    return ", ".join(f"{count}: {reason}" for reason, count in reasons.items() if count > 0)


def _fitting(
    records: Sequence[Record], identifiers: list[str], metrics: list[Metric], width: int | None
) -> dict[str, list[str]]:
    """Return the texts of the columns of highest priority that fit into the width, by name of the metric."""
    used = sum(
        max([len(name), 6, *(cell_len(_identifier(r.get(name))) for r in records)]) + PADDING for name in identifiers
    )
    columns = {}
    for metric in sorted(metrics, key=lambda metric: metric.priority):
        cells = _cells(records, metric)
        used += max(map(cell_len, [metric.label, *cells])) + PADDING
        if width is not None and used > width:
            break
        columns[metric.name] = cells
    return columns


def _cells(records: Sequence[Record], metric: Metric) -> list[str]:
    """Return the texts of a column: one for each record, and the value at collapse."""
    at_collapse, values = "", values_at_collapse(metric, records)
    if len(values) > 1:
        at_collapse = "varies"
    elif values and metric.at_collapse is not None:
        plain = values[0] is not None and (values[0] == 0 or isinstance(metric.at_collapse, float))
        at_collapse = f"{values[0]:g}" if plain else _cell(values[0])
    return [*(_cell(_value(record, metric), error_of(record, metric.name)) for record in records), at_collapse]


def _value(record: Record, metric: Metric) -> Any:
    """Return the value of a metric; a confusion with the names of classes if they have names."""
    named = record.get(NAMED_CONFUSION) if metric.name == CONFUSION else None
    return record.get(metric.name) if named is None else named


def _cell(value: Any, error: float | None = None) -> str:
    if isinstance(value, str):
        first = value.split(" ")
        return " ".join(first[:MOST_WORDS]) + (" …" if len(first) > MOST_WORDS else "")
    if isinstance(value, int):
        return str(value)
    return MISSING if value is None else number_with_error(float(value), error)


def _identifier(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return MISSING if value is None else printable(str(value))


def _count(records: Sequence[Record], name: str) -> int:
    return len({record.get(name) for record in records})


def _where(record: Record) -> str:
    return " ".join(
        str(record[name])
        for name in (*GROUP_AND_SEED, "checkpoint", "split", "block", "tensor", "layer")
        if record.get(name) is not None
    )


def metrics_list() -> str:
    """Return all families with their costs and metrics: name, meaning, unit, direction, value at collapse, source."""
    metrics, families = all_metrics(), {family.name: family for family in FAMILIES}
    blocks = []
    for name in dict.fromkeys([*families, *(metric.family for metric in metrics)]):
        head = [f"{name}: metrics of an installed package"]
        if family := families.get(name):
            optional = "" if name in DEFAULT else " (only on request)"
            head = [f"{name}: {family.meaning}{optional}", f"  cost: {family.cost}"]
        blocks.append("\n".join([*head, *(_line_of(metric) for metric in metrics if metric.family == name)]))
    groups = [f"{name}: short for {','.join(families)}" for name, families in GROUPS.items()]
    return "\n\n".join([LIST_HEAD, *blocks, *groups])


def _line_of(metric: Metric) -> str:
    value = metric.at_collapse
    at_collapse = f"{value:g} at collapse" if isinstance(value, float) else str(value or "")
    facts = ", ".join(filter(None, (metric.unit, metric.direction, at_collapse, metric.source)))
    return f"  {metric.name:28} {metric.meaning}" + (f" [{facts}]" if facts else "")


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
        add_row(table, (_example_cell(record.get(key)) for key in present))
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


def _example_cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or isinstance(value, float):
        return short_number(value)
    text = printable(str(value))
    return f"…{text[1 - LONGEST :]}" if "/" in text and len(text) > LONGEST else shortened(text, LONGEST)

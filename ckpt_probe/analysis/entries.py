"""Names of a record beside its metrics: counts and positions; their documented order, and records without values."""

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ckpt_probe.moments import registry
from ckpt_probe.moments.selection import all_metrics

Record = dict[str, Any]

CONFUSION, NAMED_CONFUSION = "nearest.confusion", "nearest.named"
PLAIN_NAME = re.compile(r"[\w.'-]+")
"""Class names that need no quotes beside a colon and a count."""

GROUP_AND_SEED = ("group", "seed")
POSITION = (
    *GROUP_AND_SEED, "checkpoint", "step", "alpha", "split", "block", "tensor", "layer", "depth", "class", "class_name"
)  # fmt: skip
COUNTS = ("samples", "features", "classes", "classes_present", "samples_left_out", "classes_left_out")
NOT_STORED = "samples_not_stored"
DOCUMENTS = "documents"
COUNTS_IF_ANY = (NOT_STORED, DOCUMENTS, "classes_below_min_samples", "classes_of_one_sample")
"""Counts that are absent from a record where they are 0."""
FIT_RANGE = ("alpha_req_first", "alpha_req_last")
"""Ranks of the eigenvalues to which `alpha_req` is fitted."""
REFERENCES = tuple(name for names in registry.REFERENCES.values() for name in names)
EXTRA = ("route", "route_reason", "missing")
"""Names of a record beside the metrics: where it belongs, counts, values at collapse, how and why not."""


STDERR, BIAS = "_stderr", "_bias"
"""Endings of the names of the standard error and of the bias of a metric."""


def is_uncertainty(name: str, names: Collection[str]) -> bool:
    """Return whether a name is that of the standard error or the bias of one of the metrics `names`."""
    return any(name.endswith(ending) and name.removesuffix(ending) in names for ending in (STDERR, BIAS))


def corrected(record: Mapping[str, Any]) -> Record:
    """Return a record with the bias subtracted from each value whose bias is known and can be relied on.

    A bias with a reason in `missing`, because the sample is too small for this number, is not subtracted.

    Args:
        record: Values by name, with `NAME_bias` beside `NAME`.
    """

    def less_bias(name: str, value: Any) -> Any:
        bias = record.get(f"{name}{BIAS}")
        return value - bias if bias is not None and value is not None and bias_is_reliable(record, name) else value

    return {name: less_bias(name, value) for name, value in record.items()}


def corrected_value(record: Mapping[str, Any], name: str) -> tuple[float, float] | None:
    """Return a value less its bias, and its standard error; None if one is unknown, or the bias cannot be relied on."""
    bias, stderr = record.get(f"{name}{BIAS}"), record.get(f"{name}{STDERR}")
    if record.get(name) is None or bias is None or stderr is None or not bias_is_reliable(record, name):
        return None
    return record[name] - bias, stderr


def bias_is_reliable(record: Mapping[str, Any], name: str) -> bool:
    """Return whether `missing` states nothing about the bias of a metric, such as that the sample is too small."""
    missing = str(record.get("missing") or "")
    return re.search(rf"(?<![\w.]){re.escape(name + BIAS)}(?![\w.])", missing) is None


def empty_record() -> Record:
    """Return a record of a split without any value: every name that such a record always has, with None."""
    metrics = [metric for metric in registry.METRICS if metric.family in registry.DEFAULT]
    sometimes = {registry.LAYERS, registry.DOCUMENTS, registry.TRAIN_MEANS}
    names = [metric.name for metric in metrics if not metric.of_weights and not sometimes & set(metric.requires)]
    return dict.fromkeys([*COUNTS, *names, *FIT_RANGE, *REFERENCES, *EXTRA])


def join_reasons(*reasons: str | None) -> str | None:
    """Join the reasons for missing values into the text of `missing`; None without any."""
    return "; ".join(reason for reason in reasons if reason) or None


def split_reasons(record: Mapping[str, Any]) -> list[tuple[list[str], str]]:
    """Return the names in `missing` with the reason for each group of them, which may be empty."""
    missing: str = record.get("missing") or ""
    groups = [part.partition(": ") for part in missing.split("; ")]
    return [(names.split(", "), reason) for names, _, reason in groups if names]


def settled(record: Record) -> Record:
    """Replace values that are not finite by None, with the reason in `missing`."""
    infinite = [name for name, value in record.items() if isinstance(value, float) and not math.isfinite(value)]
    if not infinite:
        return record
    missing = join_reasons(record.get("missing"), f"{', '.join(infinite)}: not finite")
    return {**record, **dict.fromkeys(infinite), "missing": missing}


def in_order(record: Mapping[str, Any]) -> Record:
    """Return a record with its names in the documented order, and other names at the end."""
    metrics = [metric.name for metric in all_metrics()]
    known = [*POSITION, *COUNTS, *COUNTS_IF_ANY, *metrics, *FIT_RANGE, *REFERENCES]
    known = [f"{name}{ending}" for name in known for ending in ("", STDERR, BIAS)]
    ordered = {name: record[name] for name in known if name in record}
    others = {name: value for name, value in record.items() if name not in ordered and name not in EXTRA}
    extra = {name: record.get(name) for name in EXTRA if name in record or name == "missing"}
    return {**ordered, **others, **extra}


def named_rows(rows: Sequence[Mapping[str, Any]], names: Sequence[str] | None) -> list[Record]:
    """Add class names to the rows of classes.

    Args:
        rows: One row per class, with the number of the class in `class`.
        names: Names of the classes; a class beyond the last name is called by its number.

    Returns:
        Rows with `class_name` after `class`, and `nearest.named` after `nearest.confusion`; unchanged without names.
    """
    return [_named_row(row, names) if names else dict(row) for row in rows]


def _named_row(row: Mapping[str, Any], names: Sequence[str]) -> Record:
    def name_of(label: int) -> str:
        return names[label] if label < len(names) else str(label)

    def quoted(name: str) -> str:
        return name if PLAIN_NAME.fullmatch(name) else json.dumps(name, ensure_ascii=False)

    named: Record = {}
    for key, value in row.items():
        named[key] = value
        if key == "class":
            named["class_name"] = name_of(value)
        elif key == CONFUSION and value is not None:
            pairs = (part.split(":") for part in value.split())
            named[NAMED_CONFUSION] = " ".join(f"{quoted(name_of(int(label)))}:{count}" for label, count in pairs)
    return named

"""Difference of two records, with the standard error of rows that both have in common."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ckpt_probe.errors import DataError
from ckpt_probe.moments.errors import EQUAL, NO_SPREAD, Influences, computing_error
from ckpt_probe.moments.record import DetailedRecord
from ckpt_probe.moments.selection import find_metrics, suggest_metrics

PAIRED = "paired"
OTHER_ROWS = "independent: the records have different rows"
NO_INFLUENCES = "independent: a record has no influences of its rows"
NO_ERROR = "a record has no standard error of it"


def difference(
    record_a: DetailedRecord | Mapping[str, Any],
    record_b: DetailedRecord | Mapping[str, Any],
    metrics: str | Iterable[str] | None = None,
) -> dict[str, Any]:
    """Return the differences a − b of the metrics of two records that were computed with `errors=True`.

    If both records are of the same rows, as those of two checkpoints or layers, errors are paired: the standard error
    is sd(IF_a − IF_b)/√N, with the influences IF of each row. It is much smaller than the two separate errors suggest.
    Otherwise the errors are combined as those of independent samples.

    Args:
        record_a: A record, such as the result of `Moments.compute`, or of `Moments.read` with its details.
        record_b: The record that is subtracted.
        metrics: Names, labels or patterns of metrics; all that both records have if None.

    Returns:
        For each metric the difference by its name, `NAME_stderr`, `NAME_bias` and `NAME_corrected` (the difference
        minus its bias); `rows`, which states whether errors are paired, and `missing`, the reasons for values that are
        None.

    Raises:
        DataError: If a metric is unknown, or the records have no errors.
    """
    a, b = _values(record_a), _values(record_b)
    common = [name.removesuffix("_stderr") for name in a if name.endswith("_stderr") and name in b]
    if not common:
        raise DataError("difference: the records have no standard errors; compute them with `errors=True`")
    names = common if metrics is None else find_metrics(metrics, common)
    unknown = [name for name in names if name not in common]
    if unknown:
        raise DataError(f"difference: both records have no {unknown[0]!r}{suggest_metrics(unknown[0], common)}")
    first, second = (getattr(record, "influences", None) for record in (record_a, record_b))
    rows = NO_INFLUENCES
    if first is not None and second is not None:
        rows = PAIRED if first.design.same_rows(second.design) else OTHER_ROWS
    result: dict[str, Any] = {}
    reasons: dict[str, list[str]] = {}
    for name in names:
        for key, (value, reason) in _of_metric(
            name, a, b, *((first, second) if rows == PAIRED else (None, None))
        ).items():
            result[key] = value
            if value is None:
                reasons.setdefault(reason, []).append(key)
    missing = "; ".join(f"{', '.join(keys)}: {reason}" for reason, keys in reasons.items())
    return {**result, "rows": rows, "missing": missing or None}


def _of_metric(
    name: str, a: Mapping[str, Any], b: Mapping[str, Any], first: Influences | None, second: Influences | None
) -> dict[str, tuple[float | None, str]]:
    """Return the difference of a metric, its standard error, its bias and the corrected difference, with reasons."""
    change, bias, error = _minus(a.get(name), b.get(name)), None, None
    reason = "a record has no value of it" if change is None else NO_ERROR
    errors = [error for error in (a.get(f"{name}_stderr"), b.get(f"{name}_stderr")) if error is not None]
    if change is not None and len(errors) == 2:
        if first is not None and second is not None and name in first and name in second:
            error = first.design.stderr(first[name].double() - second[name].double())
            if error is not None and not error > EQUAL * max(errors):
                error, reason = None, NO_SPREAD
            elif error is not None:
                error = math.hypot(error, computing_error(name, a), computing_error(name, b))
        else:
            error = math.hypot(*errors)
    bias = _minus(a.get(f"{name}_bias"), b.get(f"{name}_bias"))
    corrected = None if change is None or bias is None else change - bias
    without_bias = "a record has no bias of it"
    return {
        name: (change, reason),
        f"{name}_stderr": (error, reason),
        f"{name}_bias": (bias, without_bias),
        f"{name}_corrected": (corrected, without_bias),
    }


def _minus(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def _values(record: DetailedRecord | Mapping[str, Any]) -> Mapping[str, Any]:
    values = record.record if isinstance(record, DetailedRecord) else record
    if not isinstance(values, Mapping):
        raise DataError(f"difference: expected two records, found an object of type {type(values).__name__}")
    return values

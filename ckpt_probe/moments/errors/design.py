"""From the influences of rows to standard errors, of a metric and of the difference of two records with rows in common.

The standard deviation of the influences over √N is the standard error, if the rows were drawn independently. A `Design`
states how they were drawn.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ckpt_probe.errors import DataError
from ckpt_probe.moments.selection import find_metrics, suggest_metrics

if TYPE_CHECKING:
    from ckpt_probe.moments.record import DetailedRecord

FEWEST_ROWS = 8
"""Rows, and documents, below which there is no standard error."""

FEW_OF_CLASS, FEW_EFFECTIVE = 30, 50
"""Rows of a class, and normal rows that would determine a variance as well, below which standard errors are wider."""

FEW_FOR_BIAS = 200
"""Such normal rows below which the standard errors of variances include those of their biases."""

NORMAL, NORMAL_SHARE = 1.959964, 0.975
"""Quantile of the normal distribution to which standard errors refer, and its share."""

SKEWED = (NORMAL**4 + 2 * NORMAL**2 - 3) / 18
"""Factor of the squared skewness over N by which it widens a symmetric interval."""

EQUAL = 1e-9
"""Influences relative to the value, or to their terms, up to which they are rounding."""

OF_ROWS = ("indices", "labels", "shares", "documents", "document_rows")
"""Attributes of `Design` with an entry for each row."""

TAIL, INDEX = 0.2, 0.25
"""Share of the squared distances that are a tail, and extreme value index of a tail without a fourth moment."""

NO_SPREAD = "all rows have equal influence, up to rounding"

PAIRED = "paired"
OTHER_ROWS = "independent: the records have different rows"
NO_INFLUENCES = "independent: a record has no influences of its rows"
NO_ERROR = "a record has no standard error of it"


@dataclass(frozen=True)
class Design:
    """Sampling design of rows, which determines the standard error that follows from their influences.

    Attributes:
        indices: Absolute indices of the rows, (m,).
        labels: Labels of the rows, (m,).
        shares: Share of all rows for which each row stands, (m,), of sum 1.
        samples: Number of all rows.
        fixed: Whether classes were drawn with fixed counts, all of them equal.
        documents: Documents of the rows, (m,), or None.
        document_rows: Number of rows of the document of each row, (m,), or None.
    """

    indices: Tensor
    labels: Tensor
    shares: Tensor
    samples: int
    fixed: bool = False
    documents: Tensor | None = None
    document_rows: Tensor | None = None

    def stderr(self, influences: Tensor) -> float | None:
        """Return the standard error for influences (m,); None with fewer than `FEWEST_ROWS` documents."""
        known = influences.isfinite()
        if not bool(known.all()):
            return self._of(known).stderr(influences[known])
        values, within = self._deviations(influences)
        if self.documents is not None:
            return self._by_documents(values)
        labels, sizes = self._classes
        if self.fixed and bool((sizes > 1).all()):
            values = within * (sizes / (sizes - 1).double()).sqrt()[labels]
            return math.sqrt(float(self.shares @ values.square()) / self.samples)
        return math.sqrt(float(self.shares @ values.square()) / (self.samples - 1))

    @cached_property
    def _classes(self) -> tuple[Tensor, Tensor]:
        """Return the class of each row from 0, (m,), and the number of rows of each class."""
        labels = torch.unique(self.labels, return_inverse=True)[1]
        return labels, torch.bincount(labels)

    def _deviations(self, influences: Tensor) -> tuple[Tensor, Tensor]:
        """Return influences (m,) minus their mean, and minus the mean of their class."""
        labels, sizes = self._classes
        values = influences.double().cpu()
        values = values - self.shares @ values
        sums = torch.zeros(len(sizes), dtype=torch.float64).index_add(0, labels, values)
        return values, values - (sums / sizes)[labels]

    def widening(self, influences: Tensor) -> float:
        """Return the factor by which few rows widen the standard error of a metric that is not linear.

        The influences of a class of n < `FEW_OF_CLASS` rows are multiplied by n/(n−1), as if each row had been left out
        of the mean of its class (MacKinnon and White 1985). The variance s² of influences v_i with shares p_i is known
        as that of ν = 2 s⁴ / Σ p_i² (v_i² − s²)² normal ones, 2m/(k−1) for m equal shares and a kurtosis k. Below
        `FEW_EFFECTIVE`, the quantile z of the normal distribution becomes that of Student's t, and with a skewness g of
        N rows the interval is wider by 1 + (z⁴ + 2z² − 3) g²/(18 N), a term of the Edgeworth expansion of symmetric
        intervals (Hall 1992).
        """
        from scipy.special import stdtrit  # a heavy import

        known = influences.isfinite()
        if not bool(known.all()):
            return self._of(known).widening(influences[known])
        labels, sizes = self._classes
        if self.documents is not None or int(sizes.min()) < 2:
            return 1.0
        values, within = self._deviations(influences)
        between = 0.0 if self.fixed else self.shares @ (values - within).square()
        shares = torch.zeros(len(sizes), dtype=torch.float64).index_add(0, labels, self.shares)
        rows = (self.samples * shares).round()
        left_out = torch.where(rows < FEW_OF_CLASS, rows / (rows - 1), 1.0)[labels]
        wider = (self.shares @ (within.square() * left_out.pow(1 if self.fixed else 2)) + between) / (
            self.shares @ within.square() + between
        )
        if not (effective := self.effective(influences)) < FEW_EFFECTIVE:
            return math.sqrt(float(wider))
        values = within if self.fixed else values
        student = float(stdtrit(effective, NORMAL_SHARE)) / NORMAL
        skewness = float((self.shares @ values.pow(3)).square() / (self.shares @ values.square()).pow(3))
        return math.sqrt(float(wider)) * student * (1 + SKEWED * skewness / self.samples)

    def effective(self, influences: Tensor) -> float:
        """Return the number ν of normal rows that would determine the variance of influences (m,) as well."""
        values = self._deviations(influences)[1 if self.fixed else 0]
        squares, variance = values.square(), self.shares @ values.square()
        return float(2 * variance.square() / (self.shares.square() @ (squares - variance).square()))

    @property
    def equal_shares(self) -> bool:
        """Return whether the numbers of rows of the classes differ by no more than those of equally frequent ones."""
        shares = torch.zeros(len(self._classes[1]), dtype=torch.float64).index_add(0, self._classes[0], self.shares)
        distance = self.samples * float((shares * len(shares) - 1).square().sum()) / len(shares)
        return distance < len(shares) - 1 + 2 * math.sqrt(2 * (len(shares) - 1))

    def same_rows(self, other: "Design") -> bool:
        """Return whether both have the same rows with equal labels."""
        pairs = ((self.indices, other.indices), (self.labels, other.labels))
        return self.samples == other.samples and all(torch.equal(mine, theirs) for mine, theirs in pairs)

    def _of(self, chosen: Tensor) -> "Design":
        """Return the design of the rows that a mask (m,) selects."""
        rows: dict[str, Any] = {name: getattr(self, name) for name in OF_ROWS}
        rows = {name: values if values is None else values[chosen] for name, values in rows.items()}
        return replace(self, **rows | {"shares": rows["shares"] / rows["shares"].sum()})

    def _by_documents(self, values: Tensor) -> float | None:
        """Return the standard error with the influences of a document summed up.

        Of the n rows of a document, m are in the sample: the square of their sum is estimated without bias from the
        squares of the m influences and the products of different ones.
        """
        assert self.documents is not None
        assert self.document_rows is not None
        documents, each, sizes = torch.unique(self.documents, return_inverse=True, return_counts=True)
        if len(documents) < FEWEST_ROWS:
            return None
        rows = torch.zeros(len(documents), dtype=torch.float64)
        rows[each] = self.document_rows.double()
        sums = torch.zeros_like(rows).index_add(0, each, values)
        squares = torch.zeros_like(rows).index_add(0, each, values.square())
        pairs = rows * (rows - 1) / (sizes * (sizes - 1)).clamp(min=1)
        totals = rows / sizes * squares + pairs * (sums.square() - squares)
        # Rows of the sample stand for all rows; documents are more alike than independent rows, never less.
        independent = float((rows / sizes * squares).sum())
        total = max(float(totals.sum()), independent) * self.samples / float(rows.sum())
        return math.sqrt(total * len(documents) / (len(documents) - 1)) / self.samples


class Influences(dict[str, Tensor]):
    """Influences (m,), float32, of the rows of a sample by name of the metric, and how the rows were drawn.

    Attributes:
        design: How the rows were drawn.
    """

    def __init__(self, design: Design, values: Mapping[str, Tensor]) -> None:
        super().__init__({name: tensor.to(torch.float32) for name, tensor in values.items()})
        self.design = design

    @property
    def indices(self) -> Tensor:
        """Return the absolute indices of the rows, (m,)."""
        return self.design.indices

    def stderr(self, name: str) -> float | None:
        """Return the standard error of a metric from the sampling of rows."""
        return self.design.stderr(self[name])


class RecordWithErrors(dict[str, Any]):
    """A record with standard errors.

    Attributes:
        influences: Influences of the rows of the sample, or None.
    """

    def __init__(self, record: Mapping[str, Any], influences: Influences | None) -> None:
        super().__init__(record)
        self.influences = influences


def difference(
    record_a: "DetailedRecord | Mapping[str, Any]",
    record_b: "DetailedRecord | Mapping[str, Any]",
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


def _values(record: "DetailedRecord | Mapping[str, Any]") -> Mapping[str, Any]:
    values = getattr(record, "record", record)
    if not isinstance(values, Mapping):
        raise DataError(f"difference: expected two records, found an object of type {type(values).__name__}")
    return values


def computing_error(name: str, record: Mapping[str, Any]) -> float:
    """Return the error of a metric in a record from sampling its joint entropy; 0 if it was not sampled."""
    sampled = name.replace("mutual_information", "entropy_joint")
    return record.get(f"{sampled}_computing_error") or 0.0


def extreme_value_index(values: Tensor) -> float:
    """Return the extreme value index of positive values (n,): 1/a if moments exist up to order a, 0 or less if all do.

    It is the moment estimator of the largest fifth (Dekkers, Einmahl and de Haan 1989); −∞ if these are equal or zero.
    """
    tail = values.sort(descending=True).values[: int(TAIL * len(values)) + 1]
    if len(tail) < FEWEST_ROWS or not bool(tail[-1] > 0):
        return -math.inf
    logs = (tail[:-1] / tail[-1]).log()
    first, second = logs.mean(), logs.square().mean()
    return float(first + 1 - 0.5 / (1 - first.square() / second)) if bool(second > 0) else -math.inf

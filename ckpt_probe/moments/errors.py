"""Standard errors of metrics: the influence of each row of a sample, by autograd along the weights of these rows.

Metrics are functions F of weighted sums over rows. Row i gets the weight 1 + w_i, and N · ∂F/∂w_i at w = 0 is its
influence, whose standard deviation over √N is the standard error (Hampel 1974). All sums are functions of w exactly to
first order, so that one backward pass through the code of a metric returns the influences of all rows of a sample.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ckpt_probe.metrics.rows import as_tensor
from ckpt_probe.moments.quality import Scored, bins_of
from ckpt_probe.moments.registry import COMPUTING_ERROR, LOGITS, MEANS, OUTSIDE, SCATTER, SECOND_PASS, Metric
from ckpt_probe.moments.spectra import linear
from ckpt_probe.moments.state import MANY_CLASSES
from ckpt_probe.moments.subset import RowSubset, priorities, ranks_in_classes

FEWEST_ROWS = 8
"""Rows, and documents, below which there is no standard error."""

NO_SUBSET = "no rows were kept for standard errors (`subset=2048`)"
FEW_ROWS = f"a standard error needs at least {FEWEST_ROWS} rows"
FEW_DOCUMENTS = f"a standard error needs at least {FEWEST_ROWS} documents"
ONE_CLASS = "only one class has samples"
SINGLE_ROWS = "a class has fewer than two rows"
MISSES_CLASS = "the rows kept for standard errors miss a class"
NO_GRADIENT = "it does not depend on the rows, or its function has no gradient"
NO_VALUES_OF_ROWS = "the values of its rows are not known"
FIXED = "it does not depend on the rows"
OF_COMPUTATION = "it is an error of the computation"
NO_SPREAD = "all rows have equal influence, up to rounding"
NOT_FINITE = "its gradient is not finite here"
AT_MAXIMUM = "classes are equally frequent within their error, where its gradient vanishes: the interval is too wide"
SEVERAL_MAXIMA = "the maxima of two classes differ by less than their error: the interval is too narrow"

HEAVY_TAILS = "distances of rows from their class mean have heavy tails: the error may be too small"
TAIL, INDEX = 0.2, 0.25
"""Share of the squared distances that are a tail, and extreme value index of a tail without a fourth moment."""

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


def needs_classes(metric: Metric) -> bool:
    """Return whether a metric depends on the rows of every class by themselves, not on all rows alike."""
    of_classes = {MEANS, SCATTER, OUTSIDE, SECOND_PASS}
    return metric.family == "within" or (metric.family != "spectrum" and not of_classes.isdisjoint(metric.requires))


@dataclass
class Sample:
    """Rows along whose weights the inputs of metrics have gradients.

    Attributes:
        features: Rows, (m, D), float64, on the device of the moments.
        labels: Labels of the rows, (m,), on this device.
        weights: Weights of the rows, zeros, (m,), with gradient.
        halves: Half of each row, 0 or 1, (m,).
        design: How the rows were drawn.
        reason: Reason why no metric has a standard error, or None.
        classes: Number of classes that are present.
        single: Whether one of these has one row only.
        misses: Whether one of these has no row in the sample.
        row_values: Values (m,) of the rows of the sample, such as 1 for a correct prediction, by name of the metric
            that is their mean over all rows. Those that features and classifier determine are computed if they are not
            set, for example from stored logits.
        head: Weights and bias of the classifier; None if unknown.
    """

    features: Tensor
    labels: Tensor
    weights: Tensor
    halves: Tensor
    design: Design
    reason: str | None = None
    classes: int = 0
    single: bool = False
    misses: bool = False
    row_values: dict[str, Tensor] = field(default_factory=dict)
    head: tuple[Tensor | None, Tensor | None] = (None, None)

    @staticmethod
    def of(subset: RowSubset | None, counts: Tensor, least: int = 1) -> "Sample":
        """Return the sample of a subset of rows.

        Args:
            subset: The subset, or None.
            counts: Numbers of all rows by class, (C,).
            least: Number of rows of a class from which it counts as present.
        """
        subset = RowSubset(1) if subset is None else subset
        counts, device, samples = counts.cpu(), counts.device, int(counts.sum())
        labels = subset.labels
        if subset.documents is None:
            shares = (counts.double() / torch.bincount(labels, minlength=len(counts)))[labels]
        else:
            _, each, sizes = torch.unique(subset.documents, return_inverse=True, return_counts=True)
            assert subset.document_rows is not None
            shares = subset.document_rows.double() / sizes[each]
        present = counts[counts > 0]
        design = Design(
            subset.indices,
            labels,
            shares / shares.sum(),
            samples,
            fixed=int(present.max() - present.min()) <= 1,
            documents=subset.documents,
            document_rows=subset.document_rows,
        )
        reason = NO_SUBSET if not len(subset) else FEW_ROWS if samples < FEWEST_ROWS else None
        return Sample(
            subset.features.to(device, torch.float64),
            labels.to(device),
            torch.zeros(len(subset), dtype=torch.float64, device=device, requires_grad=True),
            subset.halves,
            design,
            reason,
            classes=int((counts >= max(1, least)).sum()),
            single=least < 2 and bool((present == 1).any()),
            misses=bool((torch.bincount(labels, minlength=len(counts))[counts >= max(1, least)] == 0).any()),
        )

    def reason_of(self, metric: Metric) -> str | None:
        """Return the reason why a metric has no standard error or bias, or None."""
        if self.reason is not None:
            return self.reason
        if metric.name == COMPUTING_ERROR:
            return OF_COMPUTATION
        if metric.family == "spectrum" and self.misses and self.classes > MANY_CLASSES:
            return MISSES_CLASS
        if not needs_classes(metric):
            return None
        if self.classes < 2:
            return ONE_CLASS
        return SINGLE_ROWS if self.single else MISSES_CLASS if self.misses else None

    def mean_of_rows(
        self,
        name: str,
        mean: float,
        nearest: Tensor | None = None,
        of_parts: tuple[Tensor, float] | None = None,
        signs: Tensor | None = None,
    ) -> float | Tensor:
        """Return the mean of all rows of a value as a function of their weights; unchanged without values of the rows.

        Args:
            name: Name of the metric.
            mean: Mean over all rows.
            nearest: Class of the nearest class mean of each row of the sample, (m,).
            of_parts: Class of the nearest class mean of the part of each row, (m,), and the factor of
                `changes_of_rows`. The error is then that of the mean minus its bias.
            signs: Sign of the sum of confidence minus correctness in each bin of confidence, (bins,).
        """
        values = self.row_values.get(name)
        if values is None:
            values = self.values_of_rows(name, nearest, signs)
            if values is not None and nearest is not None and of_parts is not None and name != "ece":
                changes = self.changes_of_rows(name, nearest, of_parts)
                values = values if changes is None else values.double() - changes
        if values is None:
            return mean
        return mean + self.weights @ (values.to(self.weights) - mean) / self.design.samples

    def changes_of_rows(self, name: str, nearest: Tensor, of_parts: tuple[Tensor, float]) -> Tensor | None:
        """Return the terms (m,), float64, of the rows in the bias of a share by nearest means, or None.

        A part of 1/k of the rows has k − 1 times the bias of all rows. With larger k fewer rows near the boundaries of
        classes decide the bias.

        Args:
            name: Name of the metric.
            nearest: Class of the nearest class mean of each row, (m,).
            of_parts: That of the class means of the part of each row, and the factor of the changes, such as
                1/(k − 1).
        """
        before, after = (self.values_of_rows(name, classes) for classes in (nearest, of_parts[0]))
        return None if before is None or after is None else of_parts[1] * (after.double() - before.double())

    def share_of_part(self, counts: Tensor) -> float:
        """Return the largest share of all rows that the sample has of each class, up to 1/4; 0 with documents.

        Args:
            counts: Numbers of all rows by class, (C,).
        """
        if self.design.documents is not None:
            return 0.0
        sizes = torch.bincount(self.design.labels, minlength=len(counts))
        return min(0.25, float((sizes / counts.clamp(min=1))[counts > 0].min()))

    def parts(self, counts: Tensor, share: float) -> list[Tensor]:
        """Return positions in the sample of all parts of a share of its rows if it holds all rows, else of one part.

        Args:
            counts: Numbers of all rows by class, (C,), on the CPU.
            share: Share of all rows of each class that a part has.
        """
        labels = self.design.labels
        order = torch.from_numpy(priorities(self.design.indices, 1).argsort(kind="stable"))
        ranks = torch.empty_like(labels)
        ranks[order] = ranks_in_classes(labels[order])
        if len(labels) == self.design.samples:
            parts = round(1 / share)
            return [(ranks % parts == number).nonzero().squeeze(1) for number in range(parts)]
        return [(ranks < (share * counts)[labels].floor()).nonzero().squeeze(1)]

    def values_of_rows(self, name: str, nearest: Tensor | None, signs: Tensor | None = None) -> Tensor | None:
        """Return the values (m,) of the rows of a metric that features and classifier determine, or None."""
        if name == "nearest_mean_accuracy" and nearest is not None:
            return nearest == self.labels
        if self.head[0] is None:
            return None
        scored = self._scored
        predicted = as_tensor(scored.prediction, "predictions")
        right = predicted == self.labels
        if name == "accuracy":
            return right
        if name == "loss":
            return as_tensor(scored.loss, "losses")
        if name == "ece" and signs is not None and scored.confidence is not None:
            confidence = as_tensor(scored.confidence, "confidences")
            return signs.to(confidence)[bins_of(confidence)] * (confidence - right.double())
        return nearest != predicted if name == "nc4.disagreement" and nearest is not None else None

    @cached_property
    def _scored(self) -> Scored:
        """Return the predicted classes, losses and confidences of the rows."""
        weights, bias = self.head
        assert weights is not None
        return Scored.of_rows(self.features, self.labels, weights, bias)

    def linear(self, value: Any) -> Any:
        """Return a value with its gradient along the weights computed, for several metrics that are functions of it."""
        if not isinstance(value, Tensor) or not value.requires_grad:
            return value
        (gradient,) = torch.autograd.grad(value, self.weights, retain_graph=True)
        return linear(value.detach(), self.weights, gradient)

    def influence(self, metric: Metric, value: Any) -> tuple[Tensor | None, str | None]:
        """Return the influences (m,) of the rows on the value of a metric, or the reason for their absence."""
        if not isinstance(value, Tensor):
            return None, NO_VALUES_OF_ROWS if {LOGITS, SECOND_PASS} & set(metric.requires) else NO_GRADIENT
        if not value.requires_grad:
            return None, FIXED
        (gradient,) = torch.autograd.grad(value, self.weights, retain_graph=True, allow_unused=True)
        if gradient is None:
            return None, FIXED
        influences = self.design.samples * gradient.cpu()
        # A sampled joint entropy has the influences of some rows; those of the others are NaN.
        known = int(influences.isfinite().sum())
        enough = known >= FEWEST_ROWS and not bool(influences.isinf().any())
        return (influences, None) if enough else (None, NOT_FINITE)

    def of_half(self, number: int, counts: Tensor) -> "Sample":
        """Return the rows of a half, 0 or 1, whose classes have counts (C,); their weights are these weights."""
        labels = self.labels.clamp(max=len(counts) - 1)
        chosen = (self.halves.to(counts.device) == number) & (labels == self.labels) & (counts[labels] > 0)
        return replace(self, features=self.features[chosen], labels=self.labels[chosen], weights=self.weights[chosen])

    def stderr(self, value: float, influences: Tensor) -> tuple[float | None, str | None]:
        """Return the standard error of a value for influences (m,), or the reason for its absence."""
        error = self.design.stderr(influences)
        if error is None:
            return None, FEW_DOCUMENTS
        scale = max(abs(value), float(influences.abs().nan_to_num().max()))
        return (error, None) if error * math.sqrt(self.design.samples) > EQUAL * scale else (None, NO_SPREAD)


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


def computing_error(name: str, record: Mapping[str, Any]) -> float:
    """Return the error of a metric in a record from sampling its joint entropy; 0 if it was not sampled."""
    sampled = name.replace("mutual_information", "entropy_joint")
    return record.get(f"{sampled}_computing_error") or 0.0


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

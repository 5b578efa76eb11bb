"""Standard errors of metrics: the influence of each row of a sample, by autograd along the weights of these rows.

Metrics are functions F of weighted sums over rows. Row i gets the weight 1 + w_i, and N · ∂F/∂w_i at w = 0 is its
influence, whose standard deviation over √N is the standard error (Hampel 1974). All sums are functions of w exactly to
first order, so that one backward pass through the code of a metric returns the influences of all rows of a sample.
"""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ckpt_probe.metrics.rows import as_tensor
from ckpt_probe.moments.class_sums import Scatter
from ckpt_probe.moments.entropies.spectra import linear
from ckpt_probe.moments.errors.design import EQUAL, FEWEST_ROWS, INDEX, NO_SPREAD, Design, extreme_value_index
from ckpt_probe.moments.errors.subset import RowSubset, priorities, ranks_in_classes
from ckpt_probe.moments.quality import Scored, bins_of
from ckpt_probe.moments.registry import COMPUTING_ERROR, LOGITS, MEANS, OUTSIDE, SCATTER, SECOND_PASS, Metric
from ckpt_probe.moments.state import MANY_CLASSES

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
NOT_FINITE = "its gradient is not finite here"
AT_MAXIMUM = "classes are equally frequent within their error, where its gradient vanishes: the interval is too wide"
SEVERAL_MAXIMA = "the maxima of two classes differ by less than their error: the interval is too narrow"

HEAVY_TAILS = "distances of rows from their class mean have heavy tails: the error may be too small"


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
        if self.classes == 2 and metric.family == "nc2":
            # Two centred means are opposite and equally long, whatever the rows.
            return FIXED
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

    def errors_of_cosines(self, scatter: Scatter, present: Tensor, unit: Tensor, lengths: Tensor) -> Tensor | None:
        """Return the standard error of the cosine of each pair of centred class means, (k, k), or None.

        Means of two classes vary independently, and the mean of all class means counts as fixed. There are no errors
        if the sample misses a class, or a mean has no direction.

        Args:
            scatter: Class means and counts of all rows.
            present: Labels of the classes, (k,).
            unit: Unit rows of the centred means, (k, D).
            lengths: Their lengths, (k,).
        """
        if self.misses or not bool((lengths > 0).all()):
            return None
        with torch.no_grad():
            position = torch.full_like(scatter.counts, -1)
            position[present] = torch.arange(len(present), device=position.device)
            chosen = (position[self.labels] >= 0).nonzero().squeeze(1)
            labels = self.labels[chosen]
            each, rows = position[labels], self.features[chosen] / scatter.unit - scatter.means[labels]
            along = rows @ unit.T
            along -= (unit @ unit.T)[each] * along.gather(1, each[:, None])
            squares = torch.zeros_like(unit @ unit.T).index_add(0, each, along.square())
            in_sample, counts = torch.bincount(each, minlength=len(unit)), scatter.counts[present]
            variances = squares / (in_sample * counts * lengths.square())[:, None]
            return (variances + variances.T).sqrt()

    def heavy_tails(self, scatter: Scatter) -> bool:
        """Return whether squared distances of rows from their class means, as their tail shows, have no fourth moment.

        The influences on a variance are such squares, and the variance of their variance is infinite then.
        """
        away = self.features / scatter.unit - scatter.means.detach()[self.labels]
        return extreme_value_index(away.square().sum(dim=1)) > INDEX

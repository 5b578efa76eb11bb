"""Inputs of metrics: class means, scatter and entropies, each of which is computed when a metric first uses it."""

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ckpt_probe.metrics import collapse, covariance, pairs
from ckpt_probe.metrics.decisions import nearest_means
from ckpt_probe.metrics.rows import EPSILON, near_one, row_lengths, unit_or_zero, where_float64_is, without_rounding
from ckpt_probe.moments.class_sums import RowBlocks, Scatter
from ckpt_probe.moments.entropies.levels import (
    NO_WEIGHTS,
    CentredParts,
    LevelEntropies,
    Options,
    class_level,
    sample_level,
)
from ckpt_probe.moments.entropies.within import WithinEntropies, within_level
from ckpt_probe.moments.errors.sample import AT_MAXIMUM, HEAVY_TAILS, ONE_CLASS, SEVERAL_MAXIMA, Sample
from ckpt_probe.moments.registry import ALL_ZERO, COINCIDE, FROM_MOMENTS, MEANS, UNIT_ROWS, WEIGHTS, Metric, Undefined
from ckpt_probe.moments.unit_moments import UnitMoments

if TYPE_CHECKING:
    from ckpt_probe.moments.documents import DocumentNumbers
    from ckpt_probe.moments.quality import Quality

HIDING_SHARE = 1e-5
"""NC1 is computed from the rows if the rounding of Σ_W exceeds this share of it."""

SINGLE_ROUNDING = 4 * torch.finfo(torch.float32).eps
"""Rounding of sums of products in single precision: eigenvalues that are zero were at most a tenth of it, at any D."""

ROWS_OF_PART = 8
"""Rows of each class that a part of the rows needs for the bias of a share by nearest class means."""

HIDDEN = "along the class means the spread is below the rounding of Σ_W, and the features are not available"
FEW_CLASSES = "fewer than two classes have as many samples as a class needs"
OVER_BUDGET = "second moments per class exceed the memory budget"


class Inputs:
    """Provides the inputs of metrics, for k classes that have enough samples.

    Args:
        scatter: Class means and scatter, in its own unit.
        unit: Second moments of unit rows, or None.
        weights: Classifier weights (C, D), float64.
        label_rows: Rows (C, E) that stand for the labels at sample level in place of weights. Class means are then not
            compared with weights.
        blocks: Starts a new pass over the rows, if they are available.
        options: Families of metrics, orders and limits.
        all_classes: Number of classes C, also those without samples; None for the highest label plus 1.
        present: Labels of the classes that count as present; those with enough samples if None.

    Attributes:
        present: Labels of the classes that have enough samples, (k,).
        provided: Requirements of metrics that are fulfilled, or `unavailable`; metrics with others are left out.
        unavailable: Reason for each requirement that is not fulfilled.
        quality: Accuracy and loss, for `LOGITS`.
        nearest: Result of the second pass over the rows, for `SECOND_PASS`, with two attributes: `disagreement`, the
            share of rows whose predicted class is not that of the nearest class mean, None without predictions; and
            `accuracy`, the share that is nearest to the mean of its class, None if no class has a mean.
        nearest_train: The same with the class means of the training split, for `TRAIN_MEANS`.
        centred: Entropies at sample level of centred features, for `CENTRED`.
        centred_parts: Those of parts of the rows, minus their own means, or None.
        outside_mean: Mean feature of outside data, (D,), for `OUTSIDE`.
        sample: Rows along whose weights all inputs have gradients; None if no errors are requested.
        halves: Function that returns the inputs of both halves of the rows, for the classes that are present here.
        halves_along: Function that returns those of both halves with gradients along the weights of the sample.
        of_rows: Function that returns the inputs of other rows (n, D) with labels (n,), for the classes present here.
        documents: Numbers of each document, for `DOCUMENTS`.
        reference: Numbers of each document of the reference dump, for `REFERENCE`.
    """

    def __init__(
        self,
        scatter: Scatter,
        unit: UnitMoments | None,
        weights: Tensor | None,
        *,
        label_rows: Tensor | None = None,
        blocks: RowBlocks | None = None,
        options: Options | None = None,
        all_classes: int | None = None,
        present: Tensor | None = None,
    ) -> None:
        self.scatter = scatter
        self.unit = unit
        self.options = options or Options()
        self.compares_means = label_rows is None
        enough = scatter.counts >= self.options.min_samples
        self.present = enough.nonzero().squeeze(1) if present is None else present
        self.samples = int(scatter.counts.sum())
        self.features = scatter.means.shape[1]
        self.all_classes = len(scatter.counts) if all_classes is None else all_classes
        self.provided = set(FROM_MOMENTS)
        self.unavailable: dict[str, str] = {}
        self.quality: Quality | None = None
        self.nearest: Any = None
        self.nearest_train: Any = None
        self.centred: LevelEntropies | None = None
        self.centred_parts: CentredParts | None = None
        self.outside_mean: Tensor | None = None
        self.sample: Sample | None = None
        self.halves: Callable[[], list[Inputs]] | None = None
        self.halves_along: Callable[[], list[Inputs]] | None = None
        self.of_rows: Callable[[Tensor, Tensor], Inputs] | None = None
        self.documents: DocumentNumbers | None = None
        self.reference: DocumentNumbers | None = None
        if len(self.present) < 2:
            self.unavailable[MEANS] = ONE_CLASS if self.options.min_samples == 1 else FEW_CLASSES
        if weights is not None and label_rows is None and not bool(weights.any()):
            # Some networks start with a classifier of zeros; its rows have no direction, but the features do.
            self.unavailable[WEIGHTS], weights = ALL_ZERO, None
        elif weights is None and label_rows is None:
            self.unavailable[WEIGHTS] = NO_WEIGHTS
        self._all_weights = weights
        self._label_rows = weights if label_rows is None else label_rows
        self._blocks = blocks

    @cached_property
    def lacks_class(self) -> bool:
        """Return whether a class that counts as present has no row, which happens in parts of all rows."""
        counts = self.scatter.counts
        return bool((self.present >= len(counts)).any()) or bool((counts[self.present] == 0).any())

    @cached_property
    def class_sizes(self) -> Tensor:
        """Return the number of rows of each class, (C,), float64, with gradient if errors are requested."""
        return self.scatter.sizes

    @cached_property
    def class_means(self) -> Tensor:
        """Return the means of the classes, (k, D)."""
        return _rows_at(self.scatter.means, self.present)

    @property
    def all_means(self) -> Tensor:
        """Return the means of all classes in units of the rows, (C, D), without gradient; NaN for those left out."""
        return self._of_present(self.scatter.means.detach() * self.scatter.unit)

    @cached_property
    def means(self) -> Tensor:
        """Return the class means minus their mean, (k, D); rows that are no longer than their rounding are zero."""
        return without_rounding(self.class_means - self.class_means.mean(dim=0), self._centred_sizes)

    @property
    def distinct_means(self) -> Tensor:
        """Return `means`, which are undefined if all of them are equal."""
        if self.coincide:
            raise Undefined(COINCIDE)
        return self.means

    @property
    def coincide(self) -> bool:
        """Return whether there are several class means, which are equal up to rounding."""
        with torch.enable_grad():
            return len(self.present) > 1 and not bool(self.means.any())

    @cached_property
    def weights(self) -> Tensor:
        """Return the classifier weights of the classes, scaled by a power of two to a size near 1, (k, D)."""
        if self._all_weights is None:
            raise Undefined(NO_WEIGHTS)
        return near_one(_rows_at(self._all_weights, self.present))

    @cached_property
    def variances(self) -> Tensor:
        """Return the mean ‖z − μ_c‖² of each class, (k,); values that are rounding are zero."""
        return self.all_variances[self.present]

    @cached_property
    def all_variances(self) -> Tensor:
        """Return the mean ‖z − μ_c‖² of all classes, (C,); zero where the distances are the rounding of the mean."""
        scatter = self.scatter
        variances = scatter.squares / self.class_sizes.clamp(min=1)
        sizes = scatter.counts.clamp(min=1) * EPSILON * self._lengths
        return torch.where(variances.detach().sqrt() > sizes, variances, 0.0)

    @cached_property
    def row_mean(self) -> Tensor:
        """Return the mean of all rows, (D,)."""
        return self._shares @ self.scatter.means

    @cached_property
    def row_covariance(self) -> Tensor:
        """Return the covariance of all rows, (D, D); zero if they differ by rounding only."""
        lengths = (self._shares * self._lengths.square()).sum().sqrt()
        away = without_rounding(self.scatter.means - self.row_mean, self.samples * EPSILON * lengths)
        between = (away * self._shares[:, None]).T @ away
        return between + self.scatter.covariance() if bool(self.all_variances.any()) else between

    @cached_property
    def row_eigenvalues(self) -> Tensor:
        """Return the positive eigenvalues of the covariance of all rows, the largest first, (r,)."""
        return covariance.descending(self.row_covariance, least=self.rounding_in(self.row_covariance))

    def rounding_in(self, moment: Tensor) -> float:
        """Return the rounding of Σ_W in single precision relative to a moment (D, D) that contains it; 0 in float64."""
        if self.scatter.dtype != torch.float32:
            return 0.0
        within = torch.linalg.matrix_norm(self.scatter.covariance().detach())
        return SINGLE_ROUNDING * float(within / torch.linalg.matrix_norm(moment.detach()))

    @cached_property
    def row_second_moment(self) -> Tensor:
        """Return the second moment of all rows as they are, (1/N) Σ z zᵀ, (D, D)."""
        return self.row_covariance + torch.outer(self.row_mean, self.row_mean)

    @property
    def rounding_of_second_moment(self) -> float:
        """Return the rounding in `row_second_moment`."""
        return self.rounding_in(self.row_second_moment)

    @cached_property
    def pairs(self) -> dict[str, pairs.Quantity]:
        """Return the quantities of pairs of class means that families need; each pair is visited once for all."""
        variances, errors, with_errors = self.variances, None, self._linear_of is not None
        unit, lengths = unit_or_zero(self.means), row_lengths(self.means)
        quantities: dict[str, pairs.Quantity] = {}
        if "nc1" in self.options.families:
            quantities["distances"] = pairs.Cdnv(variances, self.class_means, lengths, self._sizes)
        if "nc2" in self.options.families:
            if with_errors and self.sample is not None:
                errors = self.sample.errors_of_cosines(self.scatter, self.present, unit, lengths)
            quantities["angles"] = pairs.Equiangular(unit, errors)
            sizes = self._centred_sizes / torch.where(lengths > 0, lengths, 1.0)
            quantities["evenness"] = pairs.Uniformity(unit, sizes)
        pairs.visit(unit, list(quantities.values()))
        return quantities

    @cached_property
    def nc1(self) -> float | Tensor:
        """Return NC1. If a few rows are so long that their products hide the spread, it is computed from the rows."""
        varies, size = bool(self.all_variances.any()), float(self._centred_sizes.square().mean().sqrt())
        within = self.scatter.covariance() if varies else None
        axes = collapse.between_axes(self.means, size)
        if axes is None:
            raise Undefined(COINCIDE)
        if within is None:
            return 0.0
        value = collapse.trace_along(axes, within, self.means)
        spread = float(((axes @ within.detach()) * axes).sum())
        # Each product of entries was rounded once, up or down; the largest ones are on the diagonal.
        hidden = torch.finfo(self.scatter.dtype).eps * float((axes.square() @ within.detach().diagonal()).sum())
        if hidden <= HIDING_SHARE * spread:
            return value if self.sample is None else self.sample.linear(value)
        if self._blocks is None:
            raise Undefined(HIDDEN)
        return _spread_of_rows(axes, self.scatter, self._blocks) / len(self.means)

    def mean_of_rows(self, name: str, mean: float) -> float | Tensor:
        """Return the mean of all rows of a value, with gradient if the values of the rows of the sample are known."""
        assert self.sample is not None
        if self.nearest_train is self.nearest:
            name = name.removesuffix("_train_means")
        signs = None if self.quality is None else self.quality.gaps.sign()
        nearest = None if self.nearest is None else self.nearest_of_sample
        of_parts = None if self.nearest is None else self.nearest_of_parts
        return self.sample.mean_of_rows(name, mean, nearest, of_parts, signs)

    @cached_property
    def nearest_of_sample(self) -> Tensor | None:
        """Return the class of the nearest class mean of each row of the sample, (m,); None where means coincide."""
        assert self.sample is not None
        return nearest_means(self.sample.features, self.all_means) if len(self.present) else None

    @cached_property
    def nearest_of_parts(self) -> tuple[Tensor, float] | None:
        """Return the class of the nearest class mean of the part of each row, (m,), and the factor of changes.

        Parts are eighths or quarters of all rows, or one part if the sample does not hold all rows; halves if these
        have fewer than `ROWS_OF_PART` rows of a class. None if a half lacks a class.
        """
        sample, counts = self.sample, self.scatter.counts.cpu()
        assert sample is not None
        if self.nearest_of_sample is None or self.halves is None:
            return None
        classes, most = self.nearest_of_sample.clone(), sample.share_of_part(counts)
        least = ROWS_OF_PART / max(1, int(counts[self.present.cpu()].min()))
        share = next((share for share in (min(most, 0.125), most) if share >= least), None)
        if share is not None:
            parts = [part.to(classes.device) for part in sample.parts(counts, share)]
            for part in parts:
                rows, labels = sample.features[part], sample.labels[part]
                shares = rows / torch.bincount(labels)[labels][:, None]
                means = torch.zeros_like(self.scatter.means).index_add(0, labels, shares)
                classes[part] = nearest_means(rows, self._of_present(means))
            of_parts = float(sum(sample.design.shares[part.cpu()].sum() for part in parts))
            return classes, 1 / ((self.samples * len(parts) / sum(map(len, parts)) - 1) * of_parts)
        halves = self.halves()
        if any(half.lacks_class for half in halves):
            return None
        for number, half in enumerate(halves):
            chosen = (sample.halves == number).to(classes.device)
            classes[chosen] = nearest_means(sample.features[chosen], half.all_means)
        return classes, 1.0

    @cached_property
    def sample_level(self) -> LevelEntropies:
        """Return the entropies of all samples: features, and the weight rows of their labels."""
        assert self.unit is not None
        return sample_level(self.unit, self._label_rows, self._blocks, self.options, self._linear_of)

    @cached_property
    def class_level(self) -> LevelEntropies:
        """Return the entropies of class means and classifier weights."""
        linear_of, weights = self._linear_of, None if self._all_weights is None else self.weights
        return class_level(self.means, weights, self.options, linear_of)

    @property
    def _linear_of(self) -> Callable[[Any], Any] | None:
        """Return the function that computes the gradient of an entropy once for several metrics, or None."""
        return None if self.sample is None or self.sample.reason is not None else self.sample.linear

    @cached_property
    def within_classes(self) -> WithinEntropies | None:
        """Return the entropies of the rows of each class; None if neither moments nor rows are available."""
        assert self.unit is not None
        if UNIT_ROWS in self.unavailable:
            return None
        within = within_level(self.unit, self._blocks, self.options)
        return within.of(self.present) if within is not None and len(self.present) < len(within.labels) else within

    @property
    def within(self) -> dict[float, Tensor]:
        """Return the entropy of the rows of each class, (k,), by order."""
        if self.within_classes is None:
            raise Undefined(OVER_BUDGET)
        if not len(self.within_classes.labels):
            raise Undefined(FEW_CLASSES)
        return self.within_classes.entropies

    def doubt(self, metric: Metric) -> str | None:
        """Return the reason why intervals of a metric with a standard error do not hold 95 % of draws, or None."""
        assert self.sample is not None
        if metric.name == "sample.entropy_weights" and self.sample.design.equal_shares:
            return AT_MAXIMUM
        if metric.family in {"nc1", "spectrum"} and self.sample.heavy_tails(self.scatter):
            return HEAVY_TAILS
        if metric.name != "within.entropy_max":
            return None
        lead = self.within[1.0].topk(min(2, len(self.present))).values.diff().neg().sum()
        influences, _ = self.sample.influence(metric, lead)
        error = None if influences is None else self.sample.design.stderr(influences)
        return SEVERAL_MAXIMA if error is not None and float(lead.detach()) < 2 * error else None

    @cached_property
    def _lengths(self) -> Tensor:
        """Return the root mean square length of the rows of each class, (C,)."""
        return self.scatter.lengths

    def _of_present(self, means: Tensor) -> Tensor:
        """Return rows of classes (C, D) with NaN for the classes that are not present."""
        selected = torch.full_like(means, torch.nan)
        selected[self.present] = means[self.present]
        return selected

    @property
    def _shares(self) -> Tensor:
        """Return the share of each class in the rows, (C,)."""
        return self.class_sizes / self.class_sizes.sum()

    @cached_property
    def _sizes(self) -> Tensor:
        """Return the rounding of each class mean, (k,)."""
        return self.scatter.counts[self.present] * EPSILON * self._lengths[self.present]

    @cached_property
    def _centred_sizes(self) -> Tensor:
        """Return the rounding of each centred class mean, (k,)."""
        sizes, lengths = self._sizes, self._lengths[self.present]
        return sizes + sizes.mean() + len(lengths) * EPSILON * lengths.mean()


def _spread_of_rows(axes: Tensor, scatter: Scatter, blocks: RowBlocks) -> float:
    """Return Σ_j a_jᵀ Σ_W a_j for axes a_j (r, D), computed from the rows; products that are rounding are zero."""
    total, widths = 0.0, row_lengths(axes)
    for features, labels in blocks():
        block = where_float64_is(features).to(axes.device, torch.float64) / scatter.unit
        away = block - scatter.means[labels.to(axes.device, torch.int64)]
        along = (away @ axes.T).detach()
        sizes = axes.shape[1] * EPSILON * (row_lengths(block)[:, None] * widths)
        total += float(torch.where(along.abs() > sizes, along, 0.0).square().sum())
    return total / int(scatter.counts.sum())


def _rows_at(rows: Tensor, present: Tensor) -> Tensor:
    # If all classes are present, a copy would double the memory.
    return rows if len(present) == len(rows) else rows[present]

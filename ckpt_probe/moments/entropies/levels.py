"""Entropies at sample and class level, for every requested order."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ckpt_probe.errors import DataError
from ckpt_probe.metrics.entropy import Entropies, entropy_of_spectrum
from ckpt_probe.metrics.rows import EPSILON, directions, require_directions, spectrum_of_repeated
from ckpt_probe.metrics.stochastic import Estimate, Sampling, estimate_entropies
from ckpt_probe.moments.class_sums import Grouped, RowBlocks
from ckpt_probe.moments.entropies import spectra
from ckpt_probe.moments.entropies.sampling import JointOperator, MomentsOperator
from ckpt_probe.moments.entropies.spectra import (
    GRAM,
    MOMENTS,
    RANK_ONE,
    STOCHASTIC,
    InfluencesOfOrder,
    Route,
    choose_route,
    influences_of_rows,
    linear,
)
from ckpt_probe.moments.registry import COINCIDE, DEFAULT, Undefined
from ckpt_probe.moments.unit_moments import UnitMoments, dense_limit

NO_WEIGHTS = "no classifier weights"
UNRESOLVED = "sampling does not resolve the eigenvalues that decide this order"
ZERO_ENTROPY = "the entropy in its denominator is zero up to rounding"

MANY_EIGENVECTORS = 1024
"""Side of a joint matrix above which the influences of some rows take far less work than all eigenvectors."""


@dataclass(frozen=True)
class Options:
    """Options of the computation of a record from class moments.

    Attributes:
        orders: Rényi orders beside 1.
        memory: Memory budget in bytes.
        sampling: When sampling of joint entropies stops.
        families: Names of families of metrics.
        min_samples: Number of samples that a class needs to count as present.
        exact_limit: Largest side of a joint matrix that is solved exactly; None: the side that the memory allows.
        details: Whether eigenvalues are kept.
    """

    orders: tuple[float, ...] = ()
    memory: int = 2 * 2**30
    sampling: Sampling = field(default_factory=Sampling)
    families: frozenset[str] = frozenset(DEFAULT)
    min_samples: int = 1
    exact_limit: int | None = None
    details: bool = False

    @cached_property
    def limit(self) -> int:
        """Return the largest side of a joint matrix that is solved exactly and not sampled."""
        return dense_limit(self.memory, self.exact_limit)

    @cached_property
    def all_orders(self) -> tuple[float, ...]:
        """Return 1 and the other orders."""
        return (1.0, *(order for order in self.orders if order != 1))


Linear = Callable[[Any], Any]
"""Returns a value with its gradient computed: several metrics use each entropy, and the way back is long."""


@dataclass(frozen=True)
class LevelEntropies:
    """Entropies of two Gram matrices and of their elementwise product, at one level (samples or classes).

    Attributes:
        values: Values by name and order, in nats, or the reasons why they do not exist. Names are first, second and
            joint for the entropies of the matrices; mutual_information, mir and hdr; and entropy_joint_computing_error
            and mir_computing_error for the errors from sampling the joint entropy, which are 0 for mir if it is exact.
        eigenvalues: Eigenvalues by name of the matrix.
        route: Way in which the joint entropy was computed; None without a second matrix.
        estimate: Result of sampling, or None.
        left_out: Number of rows without a direction.
    """

    values: dict[str, dict[float, float | Tensor | str]]
    eigenvalues: dict[str, Tensor]
    route: Route | None = None
    estimate: Estimate | None = None
    left_out: int = 0


@dataclass(frozen=True)
class CentredParts:
    """Entropies at sample level of parts of the rows minus the mean of the part.

    Attributes:
        halves: Those of each half, None for one without rows; empty without halves.
        of_rows: Function that returns those of other rows (n, D) with labels (n,).
    """

    halves: list[LevelEntropies | None]
    of_rows: Callable[[Tensor, Tensor], LevelEntropies]


@dataclass(frozen=True)
class Joint:
    """Eigenvalues of the product of two Gram matrices, or an estimate of its entropies.

    Attributes:
        route: Way in which they were computed.
        eigenvalues: Its eigenvalues, or None.
        estimate: Result of sampling, or None.
        along: Derivatives of the entropy by numbers, and these numbers, if the eigenvalues have no gradient; or None.
    """

    route: Route
    eigenvalues: Tensor | None = None
    estimate: Estimate | None = None
    along: tuple[InfluencesOfOrder, Tensor] | None = None

    def entropy(self, order: float, like: Tensor) -> Tensor | None:
        """Return the entropy of an order, 0-d, with the dtype and device of a tensor, or None if it is unknown."""
        if self.eigenvalues is not None:
            entropy = entropy_of_spectrum(self.eigenvalues, alpha=order)
        elif self.estimate is not None and order in self.estimate.entropies:
            entropy = like.new_tensor(self.estimate.entropies[order])
        else:
            return None
        if self.along is not None and self.along[1].requires_grad:
            derivatives, numbers = self.along
            entropy = linear(entropy, numbers, derivatives(order, float(entropy)))
        return entropy


def sample_level(
    unit: UnitMoments,
    weights: Tensor | None,
    rows: RowBlocks | None,
    options: Options,
    linear_of: Linear | None = None,
) -> LevelEntropies:
    """Return the entropies of the features of all samples and of the weight rows of their labels.

    Args:
        unit: Unit rows, or their second moments.
        weights: Classifier weights, or other rows for the labels, (C, E), float64.
        rows: Starts a new pass over the rows, or None.
        options: Orders, memory and sampling.
        linear_of: Computes the gradient of each entropy, or None.

    Raises:
        DataError: If more than half of the samples have no direction.
    """
    counts, sizes, epsilon = unit.counts, unit.sizes, unit.epsilon
    mask, zero_weights = counts > 0, 0
    if weights is not None:
        mask = mask & weights.any(dim=1)[: len(counts)]
        zero_weights = int(counts[~mask].sum())
    samples, left_out = int(counts[mask].sum()), unit.left_out + zero_weights
    require_directions(left_out, samples + left_out, "features and their classifier weights")
    if zero_weights and unit.kind == "total":
        raise DataError(f"{zero_weights} samples belong to classes whose weights are all zero; more memory is needed")
    if weights is None:
        eigenvalues, joint = {"features": spectra.of_features(unit, mask)}, None
    else:
        heads, _ = directions(weights[: len(counts)][mask])
        of_label_rows = spectrum_of_repeated(heads, sizes[mask])
        eigenvalues = {"features": spectra.of_features(unit, mask), "label_rows": of_label_rows}
        joint = _joint_of_rank_one(eigenvalues) or _joint_of_samples(unit, mask, heads, rows, options, eigenvalues)
    return _level(eigenvalues, joint, options, left_out, linear_of, epsilon)


def class_level(
    means: Tensor, weights: Tensor | None, options: Options, linear_of: Linear | None = None
) -> LevelEntropies:
    """Return the entropies of centred class means (k, D) and classifier weights (k, D), one row per class."""
    mask = means.any(dim=1)
    if weights is not None:
        mask &= weights.any(dim=1)
    used = int(mask.sum())
    left_out = len(means) - used
    if 2 * left_out > len(means):
        if not bool(means.any()):
            raise Undefined(COINCIDE)
        raise Undefined(f"{left_out} of {len(means)} class means or rows of classifier weights have zero length")
    unit, ones = directions(means[mask])[0], torch.ones(used, dtype=torch.int64, device=means.device)
    eigenvalues, joint = {"means": spectrum_of_repeated(unit, ones)}, None
    if weights is not None:
        heads, _ = directions(weights[mask])
        eigenvalues["weights"] = spectrum_of_repeated(heads, ones)
        joint = _joint_of_rank_one(eigenvalues) or _joint_of_classes(unit, heads, options, eigenvalues, means)
    return _level(eigenvalues, joint, options, left_out, linear_of)


def _joint_of_rank_one(eigenvalues: dict[str, Tensor]) -> Joint | None:
    """Return the joint eigenvalues if one Gram matrix has rank one, so that its entries are signs; else None."""
    first, second = eigenvalues.values()
    if len(second) == 1:
        return Joint(RANK_ONE, first)
    return Joint(RANK_ONE, second) if len(first) == 1 else None


def _joint_of_samples(
    unit: UnitMoments,
    mask: Tensor,
    heads: Tensor,
    rows: RowBlocks | None,
    options: Options,
    eigenvalues: dict[str, Tensor],
) -> Joint:
    """Return the joint eigenvalues of unit rows and the unit classifier rows (k, E) of the classes in a mask (C,)."""
    V, present, samples = spectra.factor(heads), mask.nonzero().squeeze(1), int(unit.counts[mask].sum())
    side = unit.second.shape[1] * V.shape[1]
    route = choose_route(samples, side, options.limit, unit, rows=rows is not None)
    sample = None if unit.sample is None else spectra.sample_of_classes(unit, present)
    many = sample is not None and min(samples, side) > MANY_EIGENVECTORS and not sample[0].requires_grad
    operator = joint = estimate = along = None
    if route.name == STOCHASTIC or many:
        operator = _operator(unit, mask, heads, V, rows, options)
    solved = sample if operator is None else None
    if route.name == GRAM:
        joint = spectra.of_joint_gram(unit.rows_where(mask), heads, solved)
    elif route.name == MOMENTS:
        joint = spectra.of_joint_moments(unit, present, V, solved)
    elif route.name == STOCHASTIC and operator is not None:
        estimate = _sample(operator, eigenvalues, options)
    elif route.name == STOCHASTIC:
        route = Route(None, "sampling needs classifier rows that are no wider than the features, or fewer")
    if operator is not None and sample is not None:
        moved, classes, changes = sample
        if moved.requires_grad:
            along = (lambda order, entropy: torch.full_like(changes, torch.nan)), changes
        else:
            along = influences_of_rows(operator, samples, moved, classes, estimate), changes
    return Joint(route, joint, estimate, along)


def _joint_of_classes(
    unit: Tensor, heads: Tensor, options: Options, eigenvalues: dict[str, Tensor], means: Tensor
) -> Joint:
    """Return the joint eigenvalues of unit class means (k, D) and unit classifier rows (k, D); means of all classes."""
    V, labels = spectra.factor(heads), torch.arange(len(unit), device=unit.device)
    route, ones = choose_route(len(unit), unit.shape[1] * V.shape[1], options.limit), torch.ones_like(labels)
    if route.name == GRAM:
        return Joint(route, spectra.of_joint_gram(Grouped(unit, labels, ones), heads))
    if route.name == MOMENTS:
        return Joint(route, spectra.of_products(unit, V, options.memory))
    operator = JointOperator(lambda: [(unit.detach(), labels)], heads, ones, memory=options.memory)
    along = (lambda order, entropy: means.new_full((means.numel(),), torch.nan)), means.flatten()
    return Joint(route, None, _sample(operator, eigenvalues, options), along)


def _operator(
    unit: UnitMoments, mask: Tensor, heads: Tensor, V: Tensor, rows: RowBlocks | None, options: Options
) -> JointOperator | MomentsOperator | None:
    """Return the joint matrix in the form that costs less per product, or None if it needs wider rows."""
    counts, features = unit.counts[mask], unit.second.shape[1]
    if unit.kind == "rows":
        stored = unit.rows_where(mask)
        rows = lambda: [(stored.rows, stored.labels[stored.each()])]  # noqa: E731
    if unit.kind == "classes" and (rows is None or len(heads) * features <= int(counts.sum())):
        return MomentsOperator(unit, mask.nonzero().squeeze(1), V)
    fitted = _with_width(heads, V, features)
    if fitted is None or rows is None:
        return None
    return JointOperator(_rows_of_classes(rows, mask), fitted, counts, memory=options.memory)


def _sample(operator: JointOperator | MomentsOperator, eigenvalues: dict[str, Tensor], options: Options) -> Estimate:
    return estimate_entropies(
        operator,
        operator.size,
        known=sum(float(entropy_of_spectrum(values.detach())) for values in eigenvalues.values()),
        orders=options.orders,
        sampling=options.sampling,
        memory=options.memory // 2,
        device=next(iter(eigenvalues.values())).device,
    )


def _level(
    eigenvalues: dict[str, Tensor],
    joint: Joint | None,
    options: Options,
    left_out: int,
    linear_of: Linear | None,
    epsilon: float = EPSILON,
) -> LevelEntropies:
    """Return the entropies of each order, and the values that follow from them.

    Args:
        eigenvalues: Eigenvalues of one or two matrices by name.
        joint: Their product, or None.
        options: Orders.
        left_out: Number of rows without a direction.
        linear_of: Computes the gradient of each entropy, or None.
        epsilon: Relative precision of the products of rows.
    """
    values: dict[str, dict[float, float | Tensor | str]] = defaultdict(dict)
    estimate = None if joint is None else joint.estimate
    matrix, *others = eigenvalues.values()
    if joint is not None and joint.eigenvalues is not None:
        eigenvalues = eigenvalues | {"joint": joint.eigenvalues}
    side, errors = max(map(len, eigenvalues.values())), {} if estimate is None else estimate.stderrs
    for order in options.all_orders:
        of_joint = None if joint is None else joint.entropy(order, matrix)
        first = entropy_of_spectrum(matrix, alpha=order)
        second = entropy_of_spectrum(others[0], alpha=order) if others else None
        if linear_of is not None:
            first, second, of_joint = map(linear_of, (first, second, of_joint))
        unresolved = estimate is not None and order not in estimate.entropies
        reason = UNRESOLVED if unresolved else joint.route.reason if joint else NO_WEIGHTS
        values["first"][order] = first
        values["second"][order] = reason if second is None else second
        values["joint"][order] = reason if of_joint is None else of_joint
        values["entropy_joint_computing_error"][order] = errors.get(order, UNRESOLVED)
        if second is None or of_joint is None:
            for name in ("mutual_information", "mir", "hdr", "mir_computing_error"):
                values[name][order] = reason
            continue
        entropies = Entropies(first, second, of_joint, side, epsilon)
        values["mutual_information"][order] = entropies.mutual_information
        values["mir"][order] = mir = ZERO_ENTROPY if entropies.mir is None else entropies.mir
        values["hdr"][order] = ZERO_ENTROPY if entropies.hdr is None else entropies.hdr
        least = min(float(first.detach()), float(second.detach()))
        values["mir_computing_error"][order] = (
            mir if isinstance(mir, str) else 0.0 if estimate is None else errors[order] / least
        )
    for name in eigenvalues:
        eigenvalues[name] = eigenvalues[name].detach()
    return LevelEntropies(values, eigenvalues, None if joint is None else joint.route, estimate, left_out)


def _with_width(heads: Tensor, V: Tensor, width: int) -> Tensor | None:
    """Return rows of `width` numbers with the products of the heads (k, E) or of V (k, r); None if both are wider."""
    if heads.shape[1] == width:
        return heads
    narrow = heads if heads.shape[1] < width else V
    missing = width - narrow.shape[1]
    return torch.nn.functional.pad(narrow, (0, missing)) if missing >= 0 else None


def _rows_of_classes(rows: RowBlocks, mask: Tensor) -> RowBlocks:
    """Return a pass over the rows of the classes that a mask (C,) selects, with these classes numbered from 0."""
    numbers = mask.cumsum(0) - 1

    def blocks():
        for features, labels in rows():
            labels = labels.to(mask.device, torch.int64)
            selected = mask[labels]
            yield features[selected.to(features.device)], numbers[labels[selected]]

    return blocks

"""Entropies at sample, class and within-class level, for every requested order."""

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ckpt_probe.errors import DataError
from ckpt_probe.metrics.entropy import Entropies, entropy_of_spectrum, without_small
from ckpt_probe.metrics.rows import EPSILON, directions, require_directions
from ckpt_probe.metrics.stochastic import Estimate, Sampling, estimate_entropies
from ckpt_probe.moments import spectra
from ckpt_probe.moments.class_sums import Grouped, RowBlocks
from ckpt_probe.moments.influences import InfluencesOfOrder, influences_of_rows, linear
from ckpt_probe.moments.registry import COINCIDE, DEFAULT, Undefined
from ckpt_probe.moments.sampling import JointOperator, MomentsOperator
from ckpt_probe.moments.spectra import GRAM, MOMENTS, RANK_ONE, STOCHASTIC, Route, choose_route
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


@dataclass(frozen=True)
class LevelEntropies:
    """Entropies of two Gram matrices and of their elementwise product, at one level (samples or classes).

    Attributes:
        entropies: For each order the entropies of both matrices and of the product; None if unknown.
        eigenvalues: Eigenvalues by name of the matrix.
        route: Way in which the joint entropy was computed; None without a second matrix.
        estimate: Result of sampling, or None.
        left_out: Number of rows without a direction.
        epsilon: Relative precision of the products of rows.
    """

    entropies: dict[float, tuple[Tensor, Tensor | None, Tensor | None]]
    eigenvalues: dict[str, Tensor]
    route: Route | None = None
    estimate: Estimate | None = None
    left_out: int = 0
    epsilon: float = EPSILON

    @cached_property
    def values(self) -> dict[str, dict[float, float | Tensor | str]]:
        """Return values by name and order, in nats, or the reasons why they do not exist.

        Names are first, second and joint for the entropies of the matrices; mutual_information, mir and hdr; and
        entropy_joint_computing_error and mir_computing_error for the errors from sampling the joint entropy, which are
        0 for mir if it is exact.
        """
        values: dict[str, dict[float, float | Tensor | str]] = defaultdict(dict)
        side, errors = max(map(len, self.eigenvalues.values())), {} if self.estimate is None else self.estimate.stderrs
        for order, (first, second, joint) in self.entropies.items():
            unresolved = self.estimate is not None and order not in self.estimate.entropies
            reason = UNRESOLVED if unresolved else self.route.reason if self.route else NO_WEIGHTS
            values["first"][order] = first
            values["second"][order] = reason if second is None else second
            values["joint"][order] = reason if joint is None else joint
            values["entropy_joint_computing_error"][order] = errors.get(order, UNRESOLVED)
            if second is None or joint is None:
                for name in ("mutual_information", "mir", "hdr", "mir_computing_error"):
                    values[name][order] = reason
                continue
            three = Entropies(first, second, joint, side, self.epsilon)
            values["mutual_information"][order] = three.mutual_information
            values["mir"][order] = mir = ZERO_ENTROPY if three.mir is None else three.mir
            values["hdr"][order] = ZERO_ENTROPY if three.hdr is None else three.hdr
            least = min(float(first.detach()), float(second.detach()))
            values["mir_computing_error"][order] = (
                mir if isinstance(mir, str) else 0.0 if self.estimate is None else errors[order] / least
            )
        return values


def sample_level(unit: UnitMoments, weights: Tensor | None, rows: RowBlocks | None, options: Options) -> LevelEntropies:
    """Return the entropies of the features of all samples and of the weight rows of their labels.

    Args:
        unit: Unit rows, or their second moments.
        weights: Classifier weights, or other rows for the labels, (C, E), float64.
        rows: Starts a new pass over the rows, or None.
        options: Orders, memory and sampling.

    Raises:
        DataError: If more than half of the samples have no direction.
    """
    counts = unit.counts
    mask, zero_weights = counts > 0, 0
    if weights is not None:
        mask = mask & _has_direction(weights)[: len(counts)]
        zero_weights = int(counts[~mask].sum())
    samples, left_out = int(counts[mask].sum()), unit.left_out + zero_weights
    require_directions(left_out, samples + left_out, "features and their classifier weights")
    if zero_weights and unit.kind == "total":
        raise DataError(f"{zero_weights} samples belong to classes whose weights are all zero; more memory is needed")
    eigenvalues = {"features": spectra.of_features(unit, mask)}
    if weights is None:
        return _entropies_of(eigenvalues, options, left_out=left_out)
    heads, _ = directions(weights[: len(counts)][mask])
    eigenvalues["label_rows"] = spectra.of_label_rows(heads, unit.sizes[mask])
    if (joint := _joint_of_rank_one(eigenvalues)) is not None:
        return _entropies_of(eigenvalues | {"joint": joint}, options, RANK_ONE, left_out=left_out)
    V = spectra.factor(heads)
    side = unit.second.shape[1] * V.shape[1]
    needed, readable = unit.needed(), rows is not None
    route = choose_route(samples, side, kind=unit.kind, limit=options.limit, needed=needed, rows=readable)
    estimate = along = operator = None
    present = mask.nonzero().squeeze(1)
    sample = None if unit.sample is None else spectra.sample_of_classes(unit, present)
    many = sample is not None and min(samples, side) > MANY_EIGENVECTORS and not sample[0].requires_grad
    if route.name == STOCHASTIC or many:
        operator = _operator(unit, mask, heads, V, rows, options)
    solved = sample if operator is None else None
    if route.name == GRAM:
        eigenvalues["joint"] = spectra.of_joint_gram(unit.rows_where(mask), heads, solved)
    elif route.name == MOMENTS:
        eigenvalues["joint"] = spectra.of_joint_moments(unit, present, V, solved)
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
    return _entropies_of(eigenvalues, options, route, estimate, left_out, along)


def class_level(means: Tensor, weights: Tensor | None, options: Options) -> LevelEntropies:
    """Return the entropies of centred class means (k, D) and classifier weights (k, D), one row per class."""
    mask = _has_direction(means)
    if weights is not None:
        mask &= _has_direction(weights)
    used = int(mask.sum())
    left_out = len(means) - used
    if 2 * left_out > len(means):
        if not bool(means.any()):
            raise Undefined(COINCIDE)
        raise Undefined(f"{left_out} of {len(means)} class means or rows of classifier weights have zero length")
    unit_means, _ = directions(means[mask])
    unit_weights = None if weights is None else directions(weights[mask])[0]
    labels = torch.arange(used, device=means.device)
    ones = torch.ones_like(labels)
    eigenvalues = {"means": spectra.of_label_rows(unit_means, ones)}
    if unit_weights is None:
        return _entropies_of(eigenvalues, options, left_out=left_out)
    eigenvalues["weights"] = spectra.of_label_rows(unit_weights, ones)
    if (joint := _joint_of_rank_one(eigenvalues)) is not None:
        return _entropies_of(eigenvalues | {"joint": joint}, options, RANK_ONE, left_out=left_out)
    V = spectra.factor(unit_weights)
    route = choose_route(used, means.shape[1] * V.shape[1], kind="rows", limit=options.limit)
    estimate = along = None
    if route.name == GRAM:
        eigenvalues["joint"] = spectra.of_joint_gram(Grouped(unit_means, labels, ones), unit_weights)
    elif route.name == MOMENTS:
        eigenvalues["joint"] = spectra.of_products(unit_means, V, options.memory)
    else:
        operator = JointOperator(lambda: [(unit_means.detach(), labels)], unit_weights, ones, memory=options.memory)
        estimate = _sample(operator, eigenvalues, options)
        along = (lambda order, entropy: means.new_full((means.numel(),), torch.nan)), means.flatten()
    return _entropies_of(eigenvalues, options, route, estimate, left_out, along)


@dataclass(frozen=True)
class WithinEntropies:
    """Entropies of the unit rows of each class.

    Attributes:
        labels: Labels of the classes, (k,).
        entropies: Entropies (k,) for each order.
        eigenvalues: Eigenvalues by label, if `Options.details`.
    """

    labels: Tensor
    entropies: dict[float, Tensor]
    eigenvalues: dict[int, Tensor]

    def of(self, classes: Tensor) -> "WithinEntropies":
        """Return the entropies of some classes."""
        mask, labels = torch.isin(self.labels, classes), set(classes.tolist())
        eigenvalues = {label: values for label, values in self.eigenvalues.items() if label in labels}
        return WithinEntropies(self.labels[mask], {order: h[mask] for order, h in self.entropies.items()}, eigenvalues)


def within_level(unit: UnitMoments, rows: RowBlocks | None, options: Options) -> WithinEntropies | None:
    """Return the entropy of the rows of each class; None if neither second moments nor rows are available."""
    if unit.kind == "total" and rows is None:
        return None
    labels, entropies, eigenvalues = [], {order: [] for order in options.all_orders}, {}
    for batch, values in spectra.within_classes(unit, rows, options.memory):
        present = without_small(values)
        labels.append(batch)
        for order, parts in entropies.items():
            parts.append(entropy_of_spectrum(present, alpha=order))
        if options.details:
            eigenvalues |= {int(label): v[v > 0] for label, v in zip(batch, present, strict=True)}
    order = torch.argsort(torch.cat(labels))
    by_order = {alpha: torch.cat(parts)[order] for alpha, parts in entropies.items()}
    return WithinEntropies(torch.cat(labels)[order], by_order, eigenvalues)


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


def _entropies_of(
    eigenvalues: dict[str, Tensor],
    options: Options,
    route: Route | None = None,
    estimate: Estimate | None = None,
    left_out: int = 0,
    along: tuple[InfluencesOfOrder, Tensor] | None = None,
) -> LevelEntropies:
    first, *second = (values for name, values in eigenvalues.items() if name != "joint")
    entropies = {}
    for order in options.all_orders:
        joint = entropy_of_spectrum(eigenvalues["joint"], alpha=order) if "joint" in eigenvalues else None
        if estimate is not None:
            joint = first.new_tensor(estimate.entropies[order]) if order in estimate.entropies else None
        if joint is not None and along is not None and along[1].requires_grad:
            joint = linear(joint, along[1], along[0](order, float(joint)))
        other = entropy_of_spectrum(second[0], alpha=order) if second else None
        entropies[order] = (entropy_of_spectrum(first, alpha=order), other, joint)
    return LevelEntropies(entropies, eigenvalues, route, estimate, left_out)


def _joint_of_rank_one(eigenvalues: dict[str, Tensor]) -> Tensor | None:
    """Return the joint eigenvalues if one Gram matrix has rank one, so that its entries are signs; else None."""
    first, second = eigenvalues.values()
    return first if len(second) == 1 else second if len(first) == 1 else None


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


def _has_direction(rows: Tensor) -> Tensor:
    return rows.any(dim=1)

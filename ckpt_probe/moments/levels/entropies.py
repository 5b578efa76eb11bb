"""Sample, class and within-class level: entropies of every order asked for, by the route that the sizes allow."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ckpt_probe.errors import DataError
from ckpt_probe.metrics.entropy import entropy_of_spectrum, without_small
from ckpt_probe.metrics.gram import directions, require_directions
from ckpt_probe.metrics.information import Entropies
from ckpt_probe.metrics.stochastic import Estimate, Sampling, estimate_entropies
from ckpt_probe.moments.grouping import Grouped, Rows
from ckpt_probe.moments.levels import routes, spectra
from ckpt_probe.moments.levels.joint_operator import JointOperator, MomentsOperator
from ckpt_probe.moments.outer_products import add_outer
from ckpt_probe.moments.registry import DEFAULT, Undefined
from ckpt_probe.moments.unit_moments import UnitMoments

NO_WEIGHTS = "no classifier weights"
UNRESOLVED = "sampling does not resolve the eigenvalues that decide this order"
ZERO_ENTROPY = "the entropy in its denominator is zero up to rounding"


@dataclass(frozen=True)
class Options:
    """Selects what is computed from class moments.

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

    @property
    def limit(self) -> int:
        """Return the largest side of a joint matrix that is solved exactly and not sampled."""
        return routes.dense_limit(self.memory, self.exact_limit)

    @property
    def all_orders(self) -> tuple[float, ...]:
        """Return 1 and the other orders."""
        return (1.0, *(order for order in self.orders if order != 1))


@dataclass(frozen=True)
class Level:
    """Entropies of two Gram matrices and of their elementwise product, at one level (samples or classes).

    Methods raise `Undefined` with the reason if a value does not exist.

    Attributes:
        entropies: For each order the entropies of both matrices and of the product; None if unknown.
        eigenvalues: Eigenvalues by name of the matrix.
        route: Way in which the joint entropy was computed; None without a second matrix.
        estimate: Result of sampling, or None.
        left_out: Number of rows without a direction.
    """

    entropies: dict[float, tuple[Tensor, Tensor | None, Tensor | None]]
    eigenvalues: dict[str, Tensor]
    route: routes.Route | None = None
    estimate: Estimate | None = None
    left_out: int = 0

    def first(self, order: float) -> Tensor:
        """Return the entropy of the first matrix, in nats."""
        return self.entropies[order][0]

    def second(self, order: float) -> Tensor:
        """Return the entropy of the second matrix, in nats."""
        return self._existing(self.entropies[order][1], order)

    def joint(self, order: float) -> Tensor:
        """Return the entropy of the elementwise product, in nats."""
        return self._existing(self.entropies[order][2], order)

    def mutual_information(self, order: float) -> Tensor:
        """Return the mutual information, in nats."""
        return self._three(order).mutual_information

    def mir(self, order: float) -> Tensor:
        """Return the mutual information ratio."""
        return _nonzero(self._three(order).mir)

    def hdr(self, order: float) -> Tensor:
        """Return the entropy difference ratio."""
        return _nonzero(self._three(order).hdr)

    def mir_stderr(self, order: float) -> float:
        """Return the standard error of the mutual information ratio, 0 if it is exact."""
        entropies = self._three(order)
        _nonzero(entropies.mir)
        if self.estimate is None:
            return 0.0
        return self.estimate.stderrs[order] / min(float(entropies.first), float(entropies.second))

    def joint_stderr(self, order: float) -> float:
        """Return the standard error of a sampled joint entropy."""
        if self.estimate is None or order not in self.estimate.stderrs:
            raise Undefined(UNRESOLVED)
        return self.estimate.stderrs[order]

    def _three(self, order: float) -> Entropies:
        side = max(len(values) for values in self.eigenvalues.values())
        return Entropies(self.first(order), self.second(order), self.joint(order), side)

    def _existing(self, entropy: Tensor | None, order: float) -> Tensor:
        if entropy is not None:
            return entropy
        if self.estimate is not None and order not in self.estimate.entropies:
            raise Undefined(UNRESOLVED)
        raise Undefined(self.route.reason if self.route else NO_WEIGHTS)


def _nonzero(ratio: Tensor | None) -> Tensor:
    if ratio is None:
        raise Undefined(ZERO_ENTROPY)
    return ratio


def sample_level(unit: UnitMoments, weights: Tensor | None, rows: Rows | None, options: Options) -> Level:
    """Features and the classifier rows of their labels, over all samples; weights (C, E) float64, of any width E."""
    counts = unit.counts
    kept, silent = counts > 0, 0
    if weights is not None:
        kept = kept & _directed(weights)[: len(counts)]
        silent = int(counts[~kept].sum())
    samples = int(counts[kept].sum())
    left_out = unit.left_out + silent
    require_directions(left_out, samples + left_out, "features and their classifier weights")
    if silent and unit.kind == "total":
        raise DataError(f"{silent} samples belong to classes whose weights are all zero; more memory is needed")
    found = {"features": spectra.of_features(unit, kept)}
    if weights is None:
        return _level(found, options, left_out=left_out)
    heads, _ = directions(weights[: len(counts)][kept])
    found["label_rows"] = spectra.of_label_rows(heads, counts[kept])
    if (joint := _of_rank_one(found)) is not None:
        return _level(found | {"joint": joint}, options, routes.OF_ONE, left_out=left_out)
    V = spectra.factor(heads)
    side = unit.second.shape[1] * V.shape[1]
    route = routes.choose(
        samples, side, kind=unit.kind, limit=options.limit, needed=unit.needed(), rows=rows is not None
    )
    if route.name == routes.GRAM:
        found["joint"] = spectra.of_joint_gram(spectra.held_rows(unit, kept), heads)
    elif route.name == routes.MOMENTS:
        found["joint"] = spectra.of_joint_moments(unit, kept.nonzero().squeeze(1), V)
    elif route.name == routes.STOCHASTIC:
        return _sampled(unit, kept, (heads, V), rows, found, options, route, left_out)
    return _level(found, options, route, left_out=left_out)


def _sampled(
    unit: UnitMoments,
    kept: Tensor,
    factors: tuple[Tensor, Tensor],
    rows: Rows | None,
    found: dict[str, Tensor],
    options: Options,
    route: routes.Route,
    left_out: int,
) -> Level:
    """Sample level with its joint entropy from the stochastic route, by the form that costs less a product."""
    heads, V = factors
    counts, features = unit.counts[kept], unit.second.shape[1]
    if unit.kind == "rows":
        held = spectra.held_rows(unit, kept)
        rows = lambda: [(held.rows, held.labels[held.each()])]  # noqa: E731
    if unit.kind == "classes" and (rows is None or len(heads) * features <= int(counts.sum())):
        operator = MomentsOperator(unit, kept.nonzero().squeeze(1), V)
        return _level(found, options, route, _estimated(operator, found, options), left_out)
    fitted = _in_width(heads, V, features)
    if fitted is None or rows is None:
        reason = "sampling needs classifier rows that are no wider than the features, or fewer"
        return _level(found, options, routes.Route(None, reason), left_out=left_out)
    source = _relabelled(_with_directions(rows, kept), kept.cumsum(0) - 1)
    operator = JointOperator(source, fitted, counts, memory=options.memory)
    return _level(found, options, route, _estimated(operator, found, options), left_out)


def class_level(M: Tensor, heads: Tensor | None, options: Options) -> Level:
    """Return the entropies of centred class means (k, D) and classifier rows (k, D), one row a class."""
    directed = _directed(M)
    if heads is not None:
        directed &= _directed(heads)
    used = int(directed.sum())
    require_directions(len(M) - used, len(M), "class means and classifier weights")
    means, _ = directions(M[directed])
    labels = torch.arange(used, device=M.device)
    ones = torch.ones_like(labels)
    found = {"means": spectra.of_label_rows(means, ones)}
    if heads is None:
        return _level(found, options, left_out=len(M) - used)
    unit_heads, _ = directions(heads[directed])
    found["weights"] = spectra.of_label_rows(unit_heads, ones)
    if (joint := _of_rank_one(found)) is not None:
        return _level(found | {"joint": joint}, options, routes.OF_ONE, left_out=len(M) - used)
    V = spectra.factor(unit_heads)
    route = routes.choose(used, M.shape[1] * V.shape[1], kind="rows", limit=options.limit)
    estimate = None
    if route.name == routes.GRAM:
        found["joint"] = spectra.of_joint_gram(Grouped(means, labels, ones), unit_heads)
    elif route.name == routes.MOMENTS:
        found["joint"] = _of_products(means, V, options.memory)
    else:
        operator = JointOperator(lambda: [(means, labels)], unit_heads, ones, memory=options.memory)
        estimate = _estimated(operator, found, options)
    return _level(found, options, route, estimate, len(M) - used)


@dataclass(frozen=True)
class Within:
    """Entropy of each class's own unit rows, by order: labels (k,), entropies (k,), and their eigenvalues by label."""

    labels: Tensor
    entropies: dict[float, Tensor]
    eigenvalues: dict[int, Tensor]

    def of(self, classes: Tensor) -> "Within":
        """Only that of some classes."""
        kept = torch.isin(self.labels, classes)
        chosen = set(classes.tolist())
        eigenvalues = {label: values for label, values in self.eigenvalues.items() if label in chosen}
        return Within(self.labels[kept], {order: h[kept] for order, h in self.entropies.items()}, eigenvalues)


def within_level(unit: UnitMoments, rows: Rows | None, options: Options) -> Within | None:
    """How much the samples of a class differ, for every class; None where neither moments nor rows are at hand."""
    if unit.kind == "total" and rows is None:
        return None
    labels, entropies, kept = [], {order: [] for order in options.all_orders}, {}
    for numbers, values in spectra.within_classes(unit, rows, options.memory):
        present = without_small(values)
        labels.append(numbers)
        for order, found in entropies.items():
            found.append(entropy_of_spectrum(present, alpha=order))
        if options.details:
            kept |= {int(n): v[v > 0] for n, v in zip(numbers, present, strict=True)}
    order = torch.argsort(torch.cat(labels))
    return Within(torch.cat(labels)[order], {a: torch.cat(f)[order] for a, f in entropies.items()}, kept)


def _level(
    found: dict[str, Tensor],
    options: Options,
    route: routes.Route | None = None,
    estimate: Estimate | None = None,
    left_out: int = 0,
) -> Level:
    first, *second = (found[name] for name in found if name != "joint")
    entropies = {}
    for order in options.all_orders:
        joint = entropy_of_spectrum(found["joint"], alpha=order) if "joint" in found else None
        if estimate is not None:
            joint = first.new_tensor(estimate.entropies[order]) if order in estimate.entropies else None
        other = entropy_of_spectrum(second[0], alpha=order) if second else None
        entropies[order] = (entropy_of_spectrum(first, alpha=order), other, joint)
    return Level(entropies, found, route, estimate, left_out)


def _of_rank_one(found: dict[str, Tensor]) -> Tensor | None:
    """Return the joint spectrum if one Gram has rank one, so that its entries are signs; else None."""
    first, second = found.values()
    return first if len(second) == 1 else second if len(first) == 1 else None


def _estimated(operator: JointOperator | MomentsOperator, found: dict[str, Tensor], options: Options) -> Estimate:
    known = sum(float(entropy_of_spectrum(values)) for values in found.values())
    device = next(iter(found.values())).device
    return estimate_entropies(
        operator,
        operator.size,
        known=known,
        orders=options.orders,
        sampling=options.sampling,
        memory=options.memory // 2,
        device=device,
    )


def _in_width(heads: Tensor, V: Tensor, width: int) -> Tensor | None:
    """Rows of `width` numbers with the same products as the heads (k, E), V (k, r) having them too; None if too few."""
    if heads.shape[1] == width:
        return heads
    narrow = heads if heads.shape[1] < width else V
    more = width - narrow.shape[1]
    return torch.nn.functional.pad(narrow, (0, more)) if more >= 0 else None


def _with_directions(rows: Rows, kept: Tensor) -> Rows:
    # Rows of zero length are dropped by the operator itself; here those of classes that have no direction.
    def blocks():
        for features, labels in rows():
            mine = kept[labels.to(kept.device, torch.int64)].to(labels.device)
            yield features[mine.to(features.device)], labels[mine]

    return blocks


def _relabelled(rows: Rows, numbers: Tensor) -> Rows:
    def blocks():
        for features, labels in rows():
            yield features, numbers[labels.to(numbers.device, torch.int64)]

    return blocks


def _of_products(means: Tensor, V: Tensor, memory: int) -> Tensor:
    side = means.shape[1] * V.shape[1]
    total = means.new_zeros(side, side)
    for part in torch.arange(len(means)).split(max(1, memory // (16 * side))):
        add_outer(total, (means[part][:, :, None] * V[part][:, None, :]).reshape(len(part), side))
    return spectra.spectrum(total.div_(len(means)))


def _directed(rows: Tensor) -> Tensor:
    return rows.any(dim=1)

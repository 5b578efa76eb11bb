"""Eigenvalues of the Gram matrices behind a record, each from the smaller of its two forms.

If the moments have a sample of rows, eigenvalues have gradients along the weights of these rows. For the second moment
A = Σ φφᵀ/N, weight w on a row with vector φ changes the eigenvalue of a unit eigenvector u by w ((u·φ)² − λ)/N. In the
Gram form K = V diag(λ) Vᵀ of the rows, u·φ is v·k/√(N λ), with k the products of the row with all rows. Where not all
eigenvectors are computed, one short Lanczos recurrence for each of some rows gives its influence on the entropy.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ckpt_probe.metrics.lanczos import Lanczos
from ckpt_probe.metrics.rows import smaller_gram, spectrum
from ckpt_probe.metrics.stochastic import Estimate
from ckpt_probe.moments.class_sums import Grouped, add_outer
from ckpt_probe.moments.entropies.sampling import JointOperator, MomentsOperator
from ckpt_probe.moments.errors.subset import ranks_in_classes
from ckpt_probe.moments.unit_moments import UnitMoments

ROWS_AT_ONCE, VECTORS_AT_ONCE = 512, 32
"""Rows whose products are formed at a time, and rows with a recurrence each at a time."""

ROWS_OF_EXACT = 512
"""Rows whose influence on an exact entropy is computed; their standard deviation is known to about 3 %."""

STEPS = 6
"""Steps of each recurrence; the influence of a row needs far fewer digits than the entropy."""

ROWS_OF_SAMPLED, FEWEST_OF_SAMPLED, STEPS_OF_LARGE, LARGE = 256, 48, 3, 10_000
"""Rows for a sampled entropy. If its vectors have more than `LARGE` numbers, fewer rows and steps in single precision
take about as long as the entropy. The fewest rows determine a standard deviation to 10 %, and three steps to 5 %."""

InfluencesOfOrder = Callable[[float, float], Tensor]
"""Order and entropy → derivatives (m,) of the entropy by the weight of each row, NaN where they are unknown."""

GRAM, MOMENTS, STOCHASTIC = "dense-gram", "dense-moments", "stochastic"


@dataclass(frozen=True)
class Route:
    """Method by which a joint entropy is computed.

    Attributes:
        name: `GRAM`, `MOMENTS` or `STOCHASTIC`; None if it cannot be computed.
        reason: Reason for the choice.
    """

    name: str | None
    reason: str


RANK_ONE = Route(MOMENTS, "one of the two Gram matrices has rank one: their product has the eigenvalues of the other")


def choose_route(n: int, side: int, limit: int, unit: UnitMoments | None = None, *, rows: bool = False) -> Route:
    """Choose the smaller form of the joint matrix if it can be solved exactly, else sampling.

    Args:
        n: Number of rows N.
        side: Side D·r of the form by moments.
        limit: Largest side that is solved exactly.
        unit: Unit rows or their second moments; None if all rows are in memory.
        rows: Whether the rows can be read again; sampling needs this if they are not stored by class.
    """
    kind = "rows" if unit is None else unit.kind
    if kind == "rows" and n <= min(side, limit):
        return Route(GRAM, f"N = {n} is at most D·r = {side}")
    if kind in {"rows", "classes"} and side <= limit:
        return Route(MOMENTS, f"D·r = {side} is less than N = {n}")
    if unit is None or kind != "total":
        reason = f"N = {n} and D·r = {side} are both over {limit}, the largest side for a dense eigensolver"
        return Route(STOCHASTIC, reason)
    reason = f"the classes' second moments would take {unit.needed() / 2**30:.2f} GiB, over the memory budget"
    if rows:
        return Route(STOCHASTIC, reason)
    return Route(None, f"{reason}, and the stochastic route needs them, or the rows themselves")


def of_features(unit: UnitMoments, mask: Tensor) -> Tensor:
    """Return the eigenvalues of gram(Z)/N over the classes that a mask (C,) selects."""
    samples, rows = int(unit.counts[mask].sum()), None
    if unit.kind == "rows":
        rows = unit.rows_where(mask).rows
        matrix = smaller_gram(rows) / samples
    else:
        # Only the lower triangle of a symmetric matrix is read.
        complete = unit.kind == "total" or bool(mask.all())
        matrix = (unit.second if complete else unit.second[_indices(mask)]).sum(dim=0) / samples
    if unit.sample is None:
        return spectrum(matrix)
    values, vectors = _eigenpairs(matrix)
    sampled, _, weights = sample_of_classes(unit, _indices(mask))
    if rows is not None and rows.shape[0] <= rows.shape[1]:
        vectors = rows.T @ (vectors / (samples * values).sqrt())
    return _moved(values, (sampled @ vectors).square(), weights, samples)


def of_joint_gram(rows: Grouped, heads: Tensor, sample: tuple[Tensor, Tensor, Tensor] | None = None) -> Tensor:
    """Return the eigenvalues of (K1 ⊙ K2)/N from N unit rows and the unit classifier rows (k, D) of their classes.

    Args:
        rows: Unit rows.
        heads: Unit classifier rows of the classes of the rows, (k, D).
        sample: Unit rows, positions of their classes among the k, and weights, of a sample; or None.
    """
    similarity, joint = heads @ heads.T, rows.rows @ rows.rows.T
    if len(rows.labels) == len(rows.rows):
        return spectrum(joint.mul_(similarity).div_(len(rows.rows)))
    each = rows.each()
    # In place and in parts, because the memory budget allows two matrices: this one and the copy of the solver.
    for part, labels in zip(joint.split(ROWS_AT_ONCE), each.split(ROWS_AT_ONCE), strict=True):
        part.mul_(similarity[labels][:, each])
    if sample is None:
        return spectrum(joint.div_(len(rows.rows)))
    values, vectors = _eigenpairs(joint.div_(len(rows.rows)))
    sampled, classes, weights = sample
    products = [
        (part @ rows.rows.T).mul_(similarity[labels][:, each]) @ vectors
        for part, labels in zip(sampled.split(ROWS_AT_ONCE), classes.split(ROWS_AT_ONCE), strict=True)
    ]
    squares = torch.cat(products).square() / (len(rows.rows) * values)
    return _moved(values, squares, weights, len(rows.rows))


def of_joint_moments(
    unit: UnitMoments, labels: Tensor, V: Tensor, sample: tuple[Tensor, Tensor, Tensor] | None = None
) -> Tensor:
    """Return the eigenvalues of Σ_c S_c ⊗ v_c v_cᵀ / N, which are the non-zero ones of (K1 ⊙ K2)/N.

    Args:
        unit: Second moments S_c of unit rows by class.
        labels: Labels of the classes, (k,).
        V: Matrix (k, r) with V Vᵀ = Ŵ Ŵᵀ.
        sample: As `of_joint_gram`.
    """
    samples = int(unit.counts[labels].sum())
    second = unit.of_classes(labels).div_(samples)
    features, rank = second.shape[1], V.shape[1]
    joint = second.new_zeros(rank, features, rank, features)
    flat = second.reshape(len(labels), -1)
    for a in range(rank):
        blocks = ((V[:, a, None] * V[:, : a + 1]).T @ flat).reshape(a + 1, features, features)
        # Only the lower triangle of a symmetric matrix is read.
        joint[a, :, : a + 1] = blocks.transpose(0, 1)
    matrix = joint.reshape(rank * features, -1)
    if sample is None:
        return spectrum(matrix)
    values, vectors = _eigenpairs(matrix)
    sampled, classes, weights = sample
    squares, by_label = vectors.new_empty(len(sampled), len(values)), vectors.mT.reshape(len(values), rank, features)
    for number in classes.unique().tolist():
        # The vectors φ = v_c ⊗ x of a class have one factor in common.
        squares[classes == number] = (sampled[classes == number] @ (V[number] @ by_label).mT).square()
    return _moved(values, squares, weights, samples)


def of_products(means: Tensor, V: Tensor, memory: int) -> Tensor:
    """Return the eigenvalues of the second moment of the rows m_c ⊗ v_c, for unit rows m_c (k, D) and V (k, r)."""
    side = means.shape[1] * V.shape[1]
    total = means.new_zeros(side, side)
    for part in torch.arange(len(means)).split(max(1, memory // (16 * side))):
        add_outer(total, (means[part][:, :, None] * V[part][:, None, :]).reshape(len(part), side))
    return spectrum(total.div_(len(means)))


def factor(heads: Tensor) -> Tensor:
    """Return V (C, r) with V Vᵀ = Ŵ Ŵᵀ, where r is at most the rank of the unit classifier rows (C, D), or D."""
    if heads.shape[0] > heads.shape[1]:
        return heads
    values, vectors = torch.linalg.eigh(heads @ heads.T)
    present = values > len(values) * torch.finfo(values.dtype).eps * values.max()
    return vectors[:, present] * values[present].sqrt()


def sample_of_classes(unit: UnitMoments, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sampled unit rows of classes with increasing `labels` (k,), the position of the class, and weights."""
    assert unit.sample is not None
    rows, classes, weights = unit.sample
    positions = torch.searchsorted(labels, classes).clamp(max=len(labels) - 1)
    chosen = labels[positions] == classes
    return rows[chosen], positions[chosen], weights[chosen]


def _eigenpairs(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues (k,) that are more than the rounding of the largest one, and unit eigenvectors (m, k)."""
    values, vectors = torch.linalg.eigh(matrix)
    absent = int((values <= small(values)).sum())
    return values[absent:], vectors[:, absent:]


def small(values: Tensor) -> Tensor:
    """Return the size up to which eigenvalues (…, m) are the rounding of the largest one, (…, 1)."""
    return values.shape[-1] * torch.finfo(values.dtype).eps * values.amax(dim=-1, keepdim=True)


def _moved(values: Tensor, squares: Tensor, weights: Tensor, samples: int) -> Tensor:
    """Return eigenvalues (k,) as functions of the weights (m,) of rows, whose squares (u·φ)² are (m, k)."""
    change = (weights @ squares - weights.sum() * values) / samples
    return values + (change - change.detach())


def _indices(mask: Tensor) -> Tensor:
    return mask.nonzero().squeeze(1)


def influences_of_rows(
    operator: JointOperator | MomentsOperator,
    samples: int,
    rows: Tensor,
    classes: Tensor,
    estimate: Estimate | None = None,
) -> InfluencesOfOrder:
    """Return the derivatives of the joint entropy by the weights of rows, for each order.

    With the vector φ of a row, the derivative of the entropy is (−φᵀ log(A) φ − H)/N; −φᵀ log(A) φ is a Gauss rule of
    a recurrence that starts at φ. If A is the Gram matrix K of the rows, it is −N eᵀ K log(K) e with the unit vector e
    of the row.

    Args:
        operator: The joint matrix.
        samples: Number of rows N.
        rows: Unit rows of a sample, (m, D).
        classes: Indices of their classes, (m,).
        estimate: The entropy if it is sampled; the derivatives then take about as many products as the entropy.
    """
    most, steps, dtype = ROWS_OF_EXACT if estimate is None else ROWS_OF_SAMPLED, STEPS, torch.float64
    if estimate is not None and operator.size > LARGE:
        steps, dtype = STEPS_OF_LARGE, torch.float32
        most = min(most, max(FEWEST_OF_SAMPLED, estimate.probes * estimate.steps // steps))
    chosen = torch.argsort(ranks_in_classes(classes), stable=True)[:most]  # as many of each class
    nodes, weights, of_gram = [], [], False
    for part in chosen.split(VECTORS_AT_ONCE):
        vectors, of_gram = operator.rows_as_vectors(rows[part], classes[part])
        rules = Lanczos(operator, vectors.to(dtype).contiguous()).run(steps)
        nodes.append(rules.nodes[0])
        weights.append(rules.weights[0])
    theta, shares = torch.cat(nodes).double(), torch.cat(weights).double()
    theta = theta.clamp(min=torch.finfo(theta.dtype).tiny)

    def derivatives(order: float, entropy: float) -> Tensor:
        powers = theta.pow(order - 1 if not of_gram else order) * (samples if of_gram else 1)
        if order == 1:
            values = -(shares * powers * theta.log()).sum(dim=1) - entropy
        else:
            trace = torch.tensor((1 - order) * entropy).exp()
            values = order / (1 - order) * ((shares * powers).sum(dim=1) / trace - 1)
        result = rows.new_full((len(rows),), torch.nan)
        result[chosen] = values.to(rows) / samples
        return result

    return derivatives


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, weights: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        return None, gradients[0] * ctx.saved_tensors[0], None


def linear(value: Tensor, weights: Tensor, gradient: Tensor) -> Tensor:
    """Return a value (0-d) whose gradient along weights (m,) is `gradient` (m,), which may contain NaN."""
    return _Linear.apply(value, weights, gradient)  # pyright: ignore[reportReturnType]

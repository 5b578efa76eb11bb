"""Eigenvalues of the Gram matrices behind a record, each from the smaller of its two forms.

If the moments have a sample of rows, eigenvalues have gradients along the weights of these rows. For the second moment
A = Σ φφᵀ/N, weight w on a row with vector φ changes the eigenvalue of a unit eigenvector u by w ((u·φ)² − λ)/N. In the
Gram form K = V diag(λ) Vᵀ of the rows, u·φ is v·k/√(N λ), with k the products of the row with all rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ckpt_probe.metrics.rows import directions, smaller_gram, spectrum, where_float64_is
from ckpt_probe.moments.class_sums import Grouped, RowBlocks, add_outer
from ckpt_probe.moments.unit_moments import UnitMoments

LEAST_BYTES = 2**23
"""Bytes for the rows of a range of classes with any memory budget: each range is one more pass over all rows."""

ROWS_AT_ONCE = 512

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


@dataclass(frozen=True)
class Stack:
    """Classes of similar size in one array.

    Attributes:
        classes: Labels of the classes, (k,).
        sizes: Number of rows of each class, (k,).
        rows: Rows of the classes, padded with zero rows, (k, P, D).
        positions: Positions of the rows among all rows, (k, P); padding has the number of all rows.
    """

    classes: Tensor
    sizes: Tensor
    rows: Tensor
    positions: Tensor


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


def within_classes(unit: UnitMoments, rows: RowBlocks | None, memory: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield labels (k,) and eigenvalues of gram(Z_c)/n_c (k, m), zeros included, for batches of classes.

    Args:
        unit: Second moments of unit rows by class.
        rows: Starts a new pass over the rows, which are used if there are no second moments by class.
        memory: Memory budget in bytes for a batch.
    """
    if unit.kind == "classes":
        present = _indices(unit.counts > 0)
        for labels in present.split(max(1, memory // (4 * 8 * unit.second.shape[1] ** 2))):
            matrices = unit.second[labels] / unit.counts[labels][:, None, None]
            if unit.sample is None:
                yield labels, torch.linalg.eigvalsh(matrices)
            else:
                yield labels, _moved_by_class(unit, labels, *torch.linalg.eigh(matrices))
        return
    for unit_rows, labels in _by_ranges(unit, rows, memory):
        for stack in stacks(unit_rows, labels):
            if unit.sample is None:
                yield stack.classes, of_stack(stack)
                continue
            values, vectors = torch.linalg.eigh(_grams_of_stack(stack))
            rows_of_gram = None
            if stack.rows.shape[1] <= stack.rows.shape[2]:
                lengths = (stack.sizes[:, None] * values.clamp(min=0)).sqrt()
                vectors = vectors / torch.where(values > _small(values), lengths, torch.inf)[:, None, :]
                rows_of_gram = stack.rows
            yield stack.classes, _moved_by_class(unit, stack.classes, values, vectors, rows_of_gram)


def of_stack(stack: Stack) -> Tensor:
    """Return the eigenvalues of gram(Z_c)/n_c of the classes in a stack of unit rows, (k, m), zeros included."""
    return torch.linalg.eigvalsh(_grams_of_stack(stack))


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
    absent = int((values <= _small(values)).sum())
    return values[absent:], vectors[:, absent:]


def _small(values: Tensor) -> Tensor:
    return values.shape[-1] * torch.finfo(values.dtype).eps * values.amax(dim=-1, keepdim=True)


def _moved(values: Tensor, squares: Tensor, weights: Tensor, samples: int) -> Tensor:
    """Return eigenvalues (k,) as functions of the weights (m,) of rows, whose squares (u·φ)² are (m, k)."""
    change = (weights @ squares - weights.sum() * values) / samples
    return values + (change - change.detach())


def _moved_by_class(
    unit: UnitMoments, labels: Tensor, values: Tensor, vectors: Tensor, rows_of_gram: Tensor | None = None
) -> Tensor:
    """Return eigenvalues (k, r) of classes as functions of the weights of their rows.

    Args:
        unit: Moments with a sample.
        labels: Labels of the classes, (k,).
        values: Eigenvalues, (k, r).
        vectors: Eigenvectors, (k, D, r), or those of the Gram matrices over the lengths of their images, (k, P, r).
        rows_of_gram: Rows of these Gram matrices, (k, P, D), or None.
    """
    order = torch.argsort(labels)
    rows, positions, weights = sample_of_classes(unit, labels[order])
    classes = order[positions]
    squares = rows.new_empty(len(rows), values.shape[1])
    for number in classes.unique().tolist():
        chosen = classes == number
        of_class = rows[chosen] if rows_of_gram is None else rows[chosen] @ rows_of_gram[number].mT
        squares[chosen] = (of_class @ vectors[number]).square()
    changes = (squares - values[classes]) * (weights / unit.counts[labels][classes])[:, None]
    return values.index_add(0, classes, changes)


def _grams_of_stack(stack: Stack) -> Tensor:
    wide = stack.rows.shape[1] > stack.rows.shape[2]
    grams = stack.rows.mT @ stack.rows if wide else stack.rows @ stack.rows.mT
    return grams / stack.sizes[:, None, None]


def _by_ranges(unit: UnitMoments, rows: RowBlocks | None, memory: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all unit rows and labels of ranges of classes that fit into the memory."""
    if unit.kind == "rows":
        stored = unit.all_rows()
        yield stored.rows, stored.labels[stored.each()]
        return
    assert rows is not None
    most = max(1, max(memory, LEAST_BYTES) // (8 * 8 * unit.second.shape[1]))
    before = unit.counts.cumsum(0) - unit.counts
    for number in (before // most)[unit.counts > 0].unique().tolist():
        selected = (before // most == number) & (unit.counts > 0)
        blocks = []
        for block, labels in unit_blocks(rows, unit.counts.device, torch.float64):
            mask = selected[labels]
            blocks.append((block[mask], labels[mask]))
        yield torch.cat([block for block, _ in blocks]), torch.cat([labels for _, labels in blocks])


def _indices(mask: Tensor) -> Tensor:
    return mask.nonzero().squeeze(1)


def stacks(rows: Tensor, labels: Tensor, *, first: int = 0, total: int | None = None) -> Iterator[Stack]:
    """Yield stacks of classes whose sizes differ by less than a factor of two.

    Args:
        rows: Rows (n, D).
        labels: Labels (n,).
        first: Position of the first row among all rows.
        total: Number of all rows; n if None.
    """
    order = torch.argsort(labels, stable=True)
    present, sizes = torch.unique_consecutive(labels[order], return_counts=True)
    starts = sizes.cumsum(0) - sizes
    padding = len(labels) if total is None else total
    doublings = torch.log2(sizes.double()).floor()
    for doubling in doublings.unique().tolist():
        chosen = (doublings == doubling).nonzero().squeeze(1)
        longest = int(sizes[chosen].max())
        offsets = torch.arange(longest, device=labels.device)
        real = offsets < sizes[chosen, None]
        sources = order[torch.where(real, starts[chosen, None] + offsets, 0)]
        positions = torch.where(real, sources + first, padding)
        yield Stack(present[chosen], sizes[chosen], rows[sources] * real[:, :, None], positions)


def unit_blocks(rows: RowBlocks, device: torch.device | None, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the rows that have a direction, scaled to unit length (m, D), and their labels (m,), block by block."""
    for features, labels in rows():
        unit, directed = directions(where_float64_is(features).to(device, torch.float64))
        yield unit.to(dtype), labels.to(device, torch.int64)[directed]

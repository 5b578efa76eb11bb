"""Eigenvalues of the Gram matrices behind a record, each from the smaller of its two forms."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ckpt_probe.metrics.entropy import spectrum
from ckpt_probe.metrics.gram import smaller_gram
from ckpt_probe.moments.class_sums import UnitMoments, add_outer
from ckpt_probe.moments.grouping import Grouped, RowBlocks, Stack, stacks, unit_blocks

LEAST_BYTES = 2**23
"""Bytes for the rows of a range of classes with any memory budget: each range is one more pass over all rows."""

ROWS_AT_ONCE = 512

GRAM, MOMENTS, STOCHASTIC = "dense-gram", "dense-moments", "stochastic"


@dataclass(frozen=True)
class Route:
    """How a joint entropy is computed.

    Attributes:
        name: `GRAM`, `MOMENTS` or `STOCHASTIC`; None if it cannot be computed.
        reason: Reason for the choice.
    """

    name: str | None
    reason: str


RANK_ONE = Route(MOMENTS, "one of the two Gram matrices has rank one: their product has the eigenvalues of the other")


def choose_route(n: int, side: int, *, kind: str, limit: int, needed: int = 0, rows: bool = False) -> Route:
    """Choose the smaller form of the joint matrix if it can be solved exactly, else sampling.

    Args:
        n: Number of rows N.
        side: Side D·r of the form by moments.
        kind: Kind of the `UnitMoments`.
        limit: Largest side that is solved exactly.
        needed: Number of bytes of second moments by class.
        rows: Whether the rows can be read again; sampling needs this if they are not stored by class.
    """
    if kind == "rows" and n <= min(side, limit):
        return Route(GRAM, f"N = {n} is at most D·r = {side}")
    if kind in {"rows", "classes"} and side <= limit:
        return Route(MOMENTS, f"D·r = {side} is less than N = {n}")
    if kind != "total":
        reason = f"N = {n} and D·r = {side} are both over {limit}, the largest side for a dense eigensolver"
        return Route(STOCHASTIC, reason)
    reason = f"the classes' second moments would take {needed / 2**30:.2f} GiB, over the memory budget"
    if rows:
        return Route(STOCHASTIC, reason)
    return Route(None, f"{reason}, and the stochastic route needs them, or the rows themselves")


def of_features(unit: UnitMoments, mask: Tensor) -> Tensor:
    """Return the eigenvalues of gram(Z)/N over the classes that a mask (C,) selects."""
    samples = int(unit.counts[mask].sum())
    if unit.kind == "rows":
        return spectrum(smaller_gram(unit.rows_where(mask).rows) / samples)
    total = unit.total() if unit.kind == "total" or bool(mask.all()) else unit.of_classes(_indices(mask)).sum(dim=0)
    return spectrum(total / samples)


def of_label_rows(heads: Tensor, counts: Tensor) -> Tensor:
    """Return the eigenvalues of the N × N Gram matrix of unit rows (C, D), row c repeated counts[c] times, over N."""
    shares = counts.to(heads.dtype) / counts.sum()
    return spectrum(smaller_gram(shares.sqrt()[:, None] * heads))


def of_joint_gram(rows: Grouped, heads: Tensor) -> Tensor:
    """Return the eigenvalues of (K1 ⊙ K2)/N from N unit rows and the unit classifier rows (k, D) of their classes."""
    similarity, each = heads @ heads.T, rows.each()
    joint = rows.rows @ rows.rows.T
    if len(rows.labels) == len(rows.rows):
        return spectrum(joint.mul_(similarity).div_(len(rows.rows)))
    # In place and in parts, because the memory budget allows two matrices: this one and the copy of the solver.
    for part, labels in zip(joint.split(ROWS_AT_ONCE), each.split(ROWS_AT_ONCE), strict=True):
        part.mul_(similarity[labels][:, each])
    return spectrum(joint.div_(len(rows.rows)))


def of_joint_moments(unit: UnitMoments, labels: Tensor, V: Tensor) -> Tensor:
    """Return the eigenvalues of Σ_c S_c ⊗ v_c v_cᵀ / N, which are the non-zero ones of (K1 ⊙ K2)/N.

    Args:
        unit: Second moments S_c of unit rows by class.
        labels: Labels of the classes, (k,).
        V: Matrix (k, r) with V Vᵀ = Ŵ Ŵᵀ.
    """
    second = unit.of_classes(labels)
    features, rank = second.shape[1], V.shape[1]
    joint = second.new_zeros(rank, features, rank, features)
    flat = second.reshape(len(labels), -1)
    for a in range(rank):
        blocks = ((V[:, a, None] * V[:, : a + 1]).T @ flat).reshape(a + 1, features, features)
        # Only the lower triangle of a symmetric matrix is read.
        joint[a, :, : a + 1] = blocks.transpose(0, 1)
    side = rank * features
    # In place, because this may be the largest matrix.
    return spectrum(joint.reshape(side, side).div_(unit.counts[labels].sum()))


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
            yield labels, torch.linalg.eigvalsh(unit.of_classes(labels) / unit.counts[labels][:, None, None])
        return
    for unit_rows, labels in _by_ranges(unit, rows, memory):
        for stack in stacks(unit_rows, labels):
            yield stack.classes, of_stack(stack)


def of_stack(stack: Stack) -> Tensor:
    """Return the eigenvalues of gram(Z_c)/n_c of the classes in a stack of unit rows, (k, m), zeros included."""
    wide = stack.rows.shape[1] > stack.rows.shape[2]
    grams = stack.rows.mT @ stack.rows if wide else stack.rows @ stack.rows.mT
    return torch.linalg.eigvalsh(grams / stack.sizes[:, None, None])


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

"""Spectra of the Gram matrices behind a record, each from the smaller of its two sides."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ckpt_probe.metrics.entropy import spectrum
from ckpt_probe.metrics.gram import smaller_gram
from ckpt_probe.moments.grouping import Grouped, Rows, Stack, stacks, unit_blocks
from ckpt_probe.moments.unit_moments import UnitMoments

LEAST_BYTES = 2**23
"""What rows of some classes may take however small the budget: each range of classes is one more pass over them all."""

ROWS_AT_ONCE = 512


def of_features(unit: UnitMoments, kept: Tensor) -> Tensor:
    """Eigenvalues of gram(Z)/N over the classes `kept` (C,) marks."""
    samples = int(unit.counts[kept].sum())
    if unit.kind == "rows":
        return spectrum(smaller_gram(held_rows(unit, kept).rows) / samples)
    total = unit.total() if unit.kind == "total" or bool(kept.all()) else unit.of_classes(_numbers(kept)).sum(dim=0)
    return spectrum(total / samples)


def of_label_rows(heads: Tensor, counts: Tensor) -> Tensor:
    """Eigenvalues of the N × N Gram of unit classifier rows (C, D), row c standing counts[c] times, over N."""
    shares = counts.to(heads.dtype) / counts.sum()
    return spectrum(smaller_gram(shares.sqrt()[:, None] * heads))


def of_joint_gram(rows: Grouped, heads: Tensor) -> Tensor:
    """Eigenvalues of (K1 ⊙ K2)/N from N unit rows; heads (k, D): unit classifier rows of the classes present."""
    similarity, each = heads @ heads.T, rows.each()
    joint = rows.rows @ rows.rows.T
    if len(rows.labels) == len(rows.rows):
        return spectrum(joint.mul_(similarity).div_(len(rows.rows)))
    # In place and by parts: two such matrices, this one and the solver's copy, are all that the budget foresees.
    for part, labels in zip(joint.split(ROWS_AT_ONCE), each.split(ROWS_AT_ONCE), strict=True):
        part.mul_(similarity[labels][:, each])
    return spectrum(joint.div_(len(rows.rows)))


def of_joint_moments(unit: UnitMoments, labels: Tensor, V: Tensor) -> Tensor:
    """The same from Σ_c S_c ⊗ v_c v_cᵀ, (D·r, D·r), where V Vᵀ = Ŵ Ŵᵀ and V has a row (r,) for each of `labels`."""
    second = unit.of_classes(labels)
    features, rank = second.shape[1], V.shape[1]
    joint = second.new_zeros(rank, features, rank, features)
    flat = second.reshape(len(labels), -1)
    for a in range(rank):
        blocks = ((V[:, a, None] * V[:, : a + 1]).T @ flat).reshape(a + 1, features, features)
        # The lower triangle is all that is read of a symmetric matrix.
        joint[a, :, : a + 1] = blocks.transpose(0, 1)
    side = rank * features
    # In place: it may be the largest matrix of all.
    return spectrum(joint.reshape(side, side).div_(unit.counts[labels].sum()))


def factor(heads: Tensor) -> Tensor:
    """V (C, r) with V Vᵀ = Ŵ Ŵᵀ, r the rank of the unit classifier rows (C, D)."""
    if heads.shape[0] > heads.shape[1]:
        return heads
    values, vectors = torch.linalg.eigh(heads @ heads.T)
    present = values > len(values) * torch.finfo(values.dtype).eps * values.max()
    return vectors[:, present] * values[present].sqrt()


def within_classes(unit: UnitMoments, rows: Rows | None, memory: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For batches of classes their labels (k,) and eigenvalues of gram(Z_c)/n_c, (k, m), zeros included.

    From second moments where they are kept, else from the rows, as many classes at once as fit `memory` bytes.
    """
    if unit.kind == "classes":
        present = _numbers(unit.counts > 0)
        for labels in present.split(max(1, memory // (4 * 8 * unit.second.shape[1] ** 2))):
            yield labels, torch.linalg.eigvalsh(unit.of_classes(labels) / unit.counts[labels][:, None, None])
        return
    for unit_rows, labels in _by_ranges(unit, rows, memory):
        for stack in stacks(unit_rows, labels):
            yield stack.classes, of_stack(stack)


def of_stack(stack: Stack) -> Tensor:
    """Eigenvalues of gram(Z_c)/n_c of the classes in a stack of unit rows, (k, m), zeros included."""
    wide = stack.rows.shape[1] > stack.rows.shape[2]
    grams = stack.rows.mT @ stack.rows if wide else stack.rows @ stack.rows.mT
    return torch.linalg.eigvalsh(grams / stack.sizes[:, None, None])


def held_rows(unit: UnitMoments, kept: Tensor) -> Grouped:
    """Unit rows of the classes that `kept` (C,) marks; only of kind "rows"."""
    held = unit.all_rows()
    return held.where(kept[held.labels][held.each()])


def _by_ranges(unit: UnitMoments, rows: Rows | None, memory: int) -> Iterator[tuple[Tensor, Tensor]]:
    if unit.kind == "rows":
        held = unit.all_rows()
        yield held.rows, held.labels[held.each()]
        return
    assert rows is not None
    most = max(1, max(memory, LEAST_BYTES) // (8 * 8 * unit.second.shape[1]))
    before = unit.counts.cumsum(0) - unit.counts
    ranges = (before // most)[unit.counts > 0].unique()
    for number in ranges.tolist():
        chosen = (before // most == number) & (unit.counts > 0)
        blocks = [_chosen(block, chosen) for block in unit_blocks(rows, unit.counts.device, torch.float64)]
        yield torch.cat([block[0] for block in blocks]), torch.cat([block[1] for block in blocks])


def _chosen(block: tuple[Tensor, Tensor], chosen: Tensor) -> tuple[Tensor, Tensor]:
    rows, labels = block
    mine = chosen[labels]
    return rows[mine], labels[mine]


def _numbers(mask: Tensor) -> Tensor:
    return mask.nonzero().squeeze(1)

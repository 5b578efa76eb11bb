"""Entropy of the rows of each class: eigenvalues of stacks of classes of similar size, or of their second moments."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ckpt_probe.metrics.entropy import entropy_of_spectrum
from ckpt_probe.metrics.rows import directions, where_float64_is, without_small
from ckpt_probe.moments.class_sums import RowBlocks
from ckpt_probe.moments.entropies.levels import Options
from ckpt_probe.moments.entropies.spectra import sample_of_classes, small
from ckpt_probe.moments.unit_moments import UnitMoments

LEAST_BYTES = 2**23
"""Bytes for the rows of a range of classes with any memory budget: each range is one more pass over all rows."""


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


@dataclass(frozen=True)
class Stack:
    """Classes of similar size in one array.

    Attributes:
        classes: Labels of the classes, (k,).
        sizes: Number of rows of each class, (k,).
        rows: Rows of the classes, padded with zero rows, (k, P, D).
    """

    classes: Tensor
    sizes: Tensor
    rows: Tensor


def within_level(unit: UnitMoments, rows: RowBlocks | None, options: Options) -> WithinEntropies | None:
    """Return the entropy of the rows of each class; None if neither second moments nor rows are available."""
    if unit.kind == "total" and rows is None:
        return None
    labels, entropies, eigenvalues = [], {order: [] for order in options.all_orders}, {}
    for batch, values in within_classes(unit, rows, options.memory):
        present = without_small(values)
        labels.append(batch)
        for order, parts in entropies.items():
            parts.append(entropy_of_spectrum(present, alpha=order))
        if options.details:
            eigenvalues |= {int(label): v[v > 0] for label, v in zip(batch, present, strict=True)}
    order = torch.argsort(torch.cat(labels))
    by_order = {alpha: torch.cat(parts)[order] for alpha, parts in entropies.items()}
    return WithinEntropies(torch.cat(labels)[order], by_order, eigenvalues)


def within_classes(unit: UnitMoments, rows: RowBlocks | None, memory: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield labels (k,) and eigenvalues of gram(Z_c)/n_c (k, m), zeros included, for batches of classes.

    Args:
        unit: Second moments of unit rows by class.
        rows: Starts a new pass over the rows, which are used if there are no second moments by class.
        memory: Memory budget in bytes for a batch.
    """
    if unit.kind == "classes":
        present = (unit.counts > 0).nonzero().squeeze(1)
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
                vectors = vectors / torch.where(values > small(values), lengths, torch.inf)[:, None, :]
                rows_of_gram = stack.rows
            yield stack.classes, _moved_by_class(unit, stack.classes, values, vectors, rows_of_gram)


def of_stack(stack: Stack) -> Tensor:
    """Return the eigenvalues of gram(Z_c)/n_c of the classes in a stack of unit rows, (k, m), zeros included."""
    return torch.linalg.eigvalsh(_grams_of_stack(stack))


def stacks(rows: Tensor, labels: Tensor) -> Iterator[Stack]:
    """Yield stacks of the classes of rows (n, D) with labels (n,) whose sizes differ by less than a factor of two."""
    order = torch.argsort(labels, stable=True)
    present, sizes = torch.unique_consecutive(labels[order], return_counts=True)
    starts, doublings = sizes.cumsum(0) - sizes, torch.log2(sizes.double()).floor()
    for doubling in doublings.unique().tolist():
        chosen = (doublings == doubling).nonzero().squeeze(1)
        offsets = torch.arange(int(sizes[chosen].max()), device=labels.device)
        real = offsets < sizes[chosen, None]
        sources = order[torch.where(real, starts[chosen, None] + offsets, 0)]
        yield Stack(present[chosen], sizes[chosen], rows[sources] * real[:, :, None])


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
        for features, labels in rows():
            block, directed = directions(where_float64_is(features).to(unit.counts.device, torch.float64))
            labels = labels.to(unit.counts.device, torch.int64)[directed]
            mask = selected[labels]
            blocks.append((block[mask], labels[mask]))
        yield torch.cat([block for block, _ in blocks]), torch.cat([labels for _, labels in blocks])

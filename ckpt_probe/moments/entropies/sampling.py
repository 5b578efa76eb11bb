"""The joint matrix K1 ⊙ K2 / N as a linear map for sampling: never formed, but applied to vectors by sums per class."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ckpt_probe.errors import DataError
from ckpt_probe.metrics.rows import directions, where_float64_is
from ckpt_probe.moments.class_sums import RowBlocks, symmetric
from ckpt_probe.moments.unit_moments import UnitMoments

CLASSES_AT_ONCE = 1024
"""Classes whose sums are multiplied by their classifier weights in one product."""

ROWS_AT_ONCE = 4096
"""Rows in one product of a run, which copies them in the precision of the product."""

NARROW = (torch.float16, torch.bfloat16, torch.float32)
"""Precisions in which rows are stored unchanged; float64 factors scale them to unit length."""


@dataclass(frozen=True)
class ClassRun:
    """Classes with equal numbers of rows, whose rows are contiguous.

    Attributes:
        classes: Indices of the classes.
        count: Number of classes.
        size: Number of rows of each class.
        start: Index of the first row.
        complete: Whether the run contains all rows of its classes.
    """

    classes: Tensor | slice
    count: int
    size: int
    start: int
    complete: bool

    def add_sums(self, sums: Tensor, rows: Tensor, x: Tensor) -> None:
        """Add Σ_i x_i z_i over the rows of each class to its sum.

        Args:
            sums: Sums of all classes, (C, b, D).
            rows: Rows z_i, (n, D).
            x: Factors x_i, (n, b).
        """
        self._add(sums, self._of(x).mT, self._of(rows).to(x.dtype))

    def put_products(self, image: Tensor, rows: Tensor, vectors: Tensor) -> None:
        """Store the products of each row with the vectors of its class.

        Args:
            image: Result, (n, b).
            rows: Rows, (n, D).
            vectors: Vectors of all classes, (C, b, D).
        """
        self._of(image).copy_(torch.bmm(self._of(rows).to(image.dtype), vectors[self.classes].mT))

    def add_second(self, sums: Tensor, rows: Tensor, factors: Tensor, vectors: Tensor) -> None:
        """Add Σ_i a_i (u · z_i) z_i for each vector u of a class to the sum of the class.

        Args:
            sums: Sums of all classes, (C, b, D).
            rows: Rows z_i, (n, D).
            factors: Factors a_i, (n, 1).
            vectors: Vectors u of all classes, (C, b, D).
        """
        class_rows = self._of(rows).to(sums.dtype)
        inner = torch.bmm(class_rows, vectors[self.classes].mT).mul_(self._of(factors))
        self._add(sums, inner.mT, class_rows)

    def _add(self, sums: Tensor, factors: Tensor, rows: Tensor) -> None:
        """Add factors (k, b, n) @ rows (k, n, D) to the sums of the classes."""
        if isinstance(self.classes, Tensor):
            sums.index_add_(0, self.classes, torch.bmm(factors, rows))
        elif self.complete:
            torch.bmm(factors, rows, out=sums[self.classes])
        else:
            sums[self.classes].add_(torch.bmm(factors, rows))

    def _of(self, values: Tensor) -> Tensor:
        return values[self.start : self.start + self.count * self.size].unflatten(0, (self.count, self.size))


def class_runs(sizes: Tensor, classes: Tensor | None = None, *, first: int = 0) -> list[ClassRun]:
    """Divide classes into runs of at most `ROWS_AT_ONCE` rows; a larger class is divided.

    Args:
        sizes: Number of rows of each class, increasing, (k,).
        classes: Indices of the classes, (k,); 0 … k−1 if None.
        first: Index of the first row of the first class.
    """
    runs, number = [], 0
    distinct, repeats = torch.unique_consecutive(sizes, return_counts=True)
    for size, count in zip(distinct.tolist(), repeats.tolist(), strict=True):
        at_once = max(1, ROWS_AT_ONCE // max(1, size))
        for start in range(number, number + count, at_once):
            part = slice(start, min(start + at_once, number + count))
            indices = part if classes is None else classes[part]
            for offset in range(0, size, ROWS_AT_ONCE):
                height = min(size - offset, ROWS_AT_ONCE) if size > ROWS_AT_ONCE else size
                runs.append(ClassRun(indices, part.stop - part.start, height, first + offset, height == size))
            first += size * (part.stop - part.start)
        number += count
    return runs


def order_by_size(labels: Tensor) -> tuple[Tensor, list[ClassRun]]:
    """Return an order (n,) of rows that makes classes of equal size contiguous, and their runs."""
    present, each, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    order = torch.argsort(counts, stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=order.device)
    return torch.argsort(ranks[each], stable=True), class_runs(counts[order], present[order])


@dataclass(frozen=True)
class SortedRows:
    """Rows whose classes are contiguous.

    Attributes:
        rows: The rows, (n, D).
        scales: Factors that scale the rows to unit length, (n, 1).
        positions: Positions of the rows in the order in which they were read, (n,).
        runs: Runs of classes.
    """

    rows: Tensor
    scales: Tensor
    positions: Tensor
    runs: list[ClassRun]

    def sort(self, x: Tensor) -> Tensor:
        """Return values (N, b) of rows in their original order, in the order of these rows and scaled, (n, b)."""
        return x[self.positions].mul_(self.scales)

    def put(self, image: Tensor, values: Tensor) -> None:
        """Store values (n, b) of these rows, scaled, at their original positions in `image` (N, b)."""
        image[self.positions] = values.mul_(self.scales)


class JointOperator:
    """Applies K1 ⊙ K2 / N, or a smaller matrix with the same non-zero eigenvalues, to vectors.

    Row i of (K1 ⊙ K2) x is ẑ_i · Σ_c G[y_i, c] (Σ_{j in c} ẑ_j x_j) with G = Ŵ Ŵᵀ. For C > 2·D the product with G is
    Ŵ (Ŵᵀ ·), 4·C·D² operations per vector, in groups of classes; else it takes C²·D operations. If in addition D² < N
    and the rows are in memory, the matrix is that of `MomentsOperator`: each row is read once per product, and vectors
    have D² numbers. Products are in the precision of the vectors: float64 for an entropy, because rounding would appear
    as eigenvalues in the null space.

    Args:
        rows: Starts a new pass over the features.
        heads: Unit rows of classifier weights, (C, D).
        counts: Number of rows with a direction in each class, (C,).
        memory: Memory budget in bytes. Rows are stored in float64, or in their own precision, if they take at most half
            of it; otherwise they are read twice per product.

    Raises:
        DataError: If the rows do not match the counts.
    """

    def __init__(self, rows: RowBlocks, heads: Tensor, counts: Tensor, *, memory: int) -> None:
        self._row_blocks = rows
        self._samples = int(counts.sum())
        self._memory = memory
        self._factored = 2 * heads.shape[1] < heads.shape[0]
        self._order = torch.argsort(counts, stable=True)
        self._sizes = counts[self._order]
        self._stored = self._read_all(heads.shape[1])
        if self._stored is not None:
            heads = heads[self._order]
        self._heads = heads
        self._groups = self._groups_of_classes() if self._factored and self._stored is not None else []
        self._squared = bool(self._groups) and heads.shape[1] ** 2 < self._samples
        self._gram = None if self._factored else heads @ heads.T

    @property
    def size(self) -> int:
        """Return the length of the vectors, N or D²."""
        return self._heads.shape[1] ** 2 if self._squared else self._samples

    def __call__(self, x: Tensor) -> Tensor:
        """Return the products with vectors x (size, b)."""
        classes, features = self._heads.shape
        at_once = 2 * (CLASSES_AT_ONCE + features) if self._groups else 2 * classes
        columns = max(1, self._memory // 8 // (x.element_size() * features * at_once))
        by_groups = self._apply_squared if self._squared else self._apply_by_groups
        product = by_groups if self._groups else self._apply_by_blocks
        parts = [product(part) for part in x.split(columns, dim=1)]
        return torch.cat(parts, dim=1).div_(self._samples)

    def rows_as_vectors(self, rows: Tensor, classes: Tensor) -> tuple[Tensor, bool]:
        """Return the vectors (size, m) of unit rows that are among the rows, and whether they are unit vectors of rows.

        Args:
            rows: Unit rows, (m, D).
            classes: Indices of their classes, (m,).
        """
        if self._squared:
            heads = self._heads[torch.argsort(self._order)[classes]]
            return (heads[:, :, None] * rows[:, None, :]).flatten(1).T, False
        best, positions = rows.new_full((len(rows),), -torch.inf), torch.zeros_like(classes)
        for block in self._blocks():
            for part, scales, numbers in zip(
                *(each.split(ROWS_AT_ONCE) for each in (block.rows, block.scales, block.positions)), strict=True
            ):
                nearest = (rows @ (part.to(rows.dtype) * scales).T).max(dim=1)
                closer = nearest.values > best
                best = torch.where(closer, nearest.values, best)
                positions = torch.where(closer, numbers[nearest.indices], positions)
        vectors = rows.new_zeros(self.size, len(rows))
        vectors[positions, torch.arange(len(rows), device=rows.device)] = 1
        return vectors, True

    def _groups_of_classes(self) -> list[tuple[list[ClassRun], Tensor]]:
        """Return the runs of stored rows and the classifier weights of each group of classes."""
        groups, first = [], 0
        for sizes, heads in zip(self._sizes.split(CLASSES_AT_ONCE), self._heads.split(CLASSES_AT_ONCE), strict=True):
            groups.append((class_runs(sizes, first=first), heads))
            first += int(sizes.sum())
        return groups

    def _apply_squared(self, x: Tensor) -> Tensor:
        """Return Σ_c (S_c ⊗ ŵ_c ŵ_cᵀ) x, with S_c = Σ ẑ ẑᵀ over the rows of a class; each row is read once."""
        stored, groups = self._stored, self._groups
        assert stored is not None
        features, columns = self._heads.shape[1], x.shape[1]
        matrices, squares = x.unflatten(0, (features, features)).mT.flatten(1), stored.scales.square()
        mixed = torch.zeros_like(matrices)
        for runs, heads in groups:
            heads = heads.to(x.dtype)
            vectors = (heads @ matrices).reshape(-1, columns, features)
            sums = torch.zeros_like(vectors)
            for run in runs:
                run.add_second(sums, stored.rows, squares, vectors)
            mixed.addmm_(heads.T, sums.flatten(1))
        return mixed.unflatten(1, (columns, features)).mT.flatten(0, 1)

    def _apply_by_groups(self, x: Tensor) -> Tensor:
        """Return the product from stored rows, with the sums of only one group of classes in memory."""
        stored, groups = self._stored, self._groups
        assert stored is not None
        features, columns = self._heads.shape[1], x.shape[1]
        mixed, values = x.new_zeros(features, features * columns), stored.sort(x)
        for runs, heads in groups:
            sums = x.new_zeros(len(heads), columns, features)
            for run in runs:
                run.add_sums(sums, stored.rows, values)
            mixed.addmm_(heads.to(x.dtype).T, sums.flatten(1))
        for runs, heads in groups:
            vectors = (heads.to(x.dtype) @ mixed).reshape(-1, columns, features)
            for run in runs:
                run.put_products(values, stored.rows, vectors)
        image = torch.empty_like(x)
        stored.put(image, values)
        return image

    def _apply_by_blocks(self, x: Tensor) -> Tensor:
        """Return the product from blocks of rows in any order, with the sums of all classes in memory."""
        (classes, features), image = self._heads.shape, torch.empty_like(x)
        sums = x.new_zeros(classes, x.shape[1], features)
        for block in self._blocks():
            values = block.sort(x)
            for run in block.runs:
                run.add_sums(sums, block.rows, values)
        vectors = self._mix_classes(sums)
        for block in self._blocks():
            values = x.new_empty(len(block.rows), x.shape[1])
            for run in block.runs:
                run.put_products(values, block.rows, vectors)
            block.put(image, values)
        return image

    def _mix_classes(self, sums: Tensor) -> Tensor:
        """Return G · sums, (C, b, D)."""
        flat = sums.flatten(1)
        if self._gram is not None:
            present, gram = flat.any(dim=1), self._gram.to(flat.dtype)
            sparse = int(present.sum()) < len(flat) // 2  # vectors of a few rows
            return (gram[:, present] @ flat[present] if sparse else gram @ flat).reshape(sums.shape)
        of_classes = self._heads.to(flat.dtype)
        mixed = of_classes.T @ flat
        # In place, because the sums may be the largest array.
        for heads, part in zip(of_classes.split(CLASSES_AT_ONCE), flat.split(CLASSES_AT_ONCE), strict=True):
            torch.mm(heads, mixed, out=part)
        return sums

    def _blocks(self) -> Iterator[SortedRows]:
        if self._stored is not None:
            yield self._stored
            return
        first = 0
        for rows, scales, labels in self._unit_blocks(narrow=False):
            order, runs = order_by_size(labels)
            first += len(labels)
            self._require(first <= self._samples, first)
            positions = order + (first - len(labels))
            yield SortedRows(rows.index_select(0, order), scales.index_select(0, order), positions, runs)
        self._require(first == self._samples, first)

    def _read_all(self, features: int) -> SortedRows | None:
        """Return all rows by class, with classes in order of size; None if they do not fit into the memory."""
        numbers, device = self._samples * features, self._sizes.device
        wide = numbers * torch.float64.itemsize <= self._memory // 2
        dtype = torch.float64 if wide else next((block.dtype for block, _ in self._row_blocks()), torch.float64)
        if numbers * dtype.itemsize > self._memory // 2:
            return None
        rows = torch.empty(self._samples, features, dtype=dtype, device=device)
        scales = torch.empty(self._samples, 1, dtype=torch.float64, device=device)
        positions = torch.empty(self._samples, dtype=torch.int64, device=device)
        free, ends, first = torch.empty_like(self._sizes), torch.empty_like(self._sizes), 0
        ends[self._order] = self._sizes.cumsum(0)
        free[self._order] = ends[self._order] - self._sizes
        for block, factors, labels in self._unit_blocks(narrow=not wide):
            if block.dtype != dtype:
                return None
            order = torch.argsort(labels, stable=True)
            present, counts = torch.unique_consecutive(labels[order], return_counts=True)
            starts = free[present]
            free[present] += counts
            self._require(bool((free <= ends).all()), first + len(labels))
            offsets = torch.arange(len(order), device=device) - torch.repeat_interleave(
                counts.cumsum(0) - counts, counts
            )
            targets = torch.repeat_interleave(starts, counts) + offsets
            rows[targets] = block.index_select(0, order)
            scales[targets], positions[targets] = factors.index_select(0, order), order + first
            first += len(labels)
        self._require(first == self._samples, first)
        return SortedRows(rows, scales, positions, class_runs(self._sizes))

    def _unit_blocks(self, *, narrow: bool) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield rows (m, D) that have a direction, factors (m, 1) to unit length, and labels (m,)."""
        device = self._sizes.device
        for features, labels in self._row_blocks():
            features = where_float64_is(features).to(device)
            unit, directed = directions(features.to(torch.float64))
            labels = labels.to(device, torch.int64)[directed]
            if narrow and features.dtype in NARROW:
                features = features[directed]
                yield features, 1 / torch.linalg.vector_norm(features, dim=1, keepdim=True, dtype=torch.float64), labels
            else:
                yield unit, torch.ones(len(unit), 1, dtype=torch.float64, device=device), labels

    def _require(self, consistent: bool, rows: int) -> None:
        if not consistent:
            raise DataError(f"the data changed between two passes: {self._samples} rows, then {rows}, or other labels")


class MomentsOperator:
    """Applies Σ_c (S_c ⊗ v_c v_cᵀ) / N, (D·r, D·r), which has the non-zero eigenvalues of K1 ⊙ K2 / N, to vectors.

    A product takes 2·C·D·(D + 2·r) operations per vector for any N.

    Args:
        unit: Second moments S_c of unit rows by class; their upper triangles are filled in place.
        labels: Labels of the classes that count, (k,).
        V: Matrix (k, r) with V Vᵀ = Ŵ Ŵᵀ.
    """

    def __init__(self, unit: UnitMoments, labels: Tensor, V: Tensor) -> None:
        self._samples = int(unit.counts[labels].sum())
        # Classes that do not count get zero vectors; selecting the others would copy all moments.
        self._V = V.new_zeros(len(unit.second), V.shape[1])
        self._V[labels] = V
        self._labels = labels
        self._second = unit.second
        for second in self._second:
            second.copy_(symmetric(second))

    @property
    def size(self) -> int:
        """Return the length of the vectors, D·r."""
        return self._second.shape[1] * self._V.shape[1]

    def rows_as_vectors(self, rows: Tensor, classes: Tensor) -> tuple[Tensor, bool]:
        """Return the vectors v_c ⊗ z (D·r, m) of unit rows (m, D) with indices (m,) of classes, and False."""
        return (self._V[self._labels[classes]][:, :, None] * rows[:, None, :]).flatten(1).T, False

    def __call__(self, x: Tensor) -> Tensor:
        """Return the products with vectors x (D·r, b), in float64."""
        classes, features, _ = self._second.shape
        vectors = (self._V @ x.to(self._V.dtype).reshape(self._V.shape[1], -1)).reshape(classes, features, -1)
        images = torch.bmm(self._second, vectors)
        return (self._V.T @ images.reshape(classes, -1)).reshape(x.shape).div_(self._samples)

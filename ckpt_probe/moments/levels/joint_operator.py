"""The joint matrix as a linear map, applied to vectors by sums over classes and never formed: from rows or moments."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ckpt_probe.errors import DataError
from ckpt_probe.metrics.gram import directions, where_float64_is
from ckpt_probe.moments.grouping import Rows, Run, by_size, runs
from ckpt_probe.moments.outer_products import symmetric
from ckpt_probe.moments.unit_moments import UnitMoments

GROUP = 1024
"""Classes whose sums meet the heads in one product."""

NARROW = (torch.float16, torch.bfloat16, torch.float32)
"""Precisions that rows are held in as they are: what scales them to unit length is a number of float64."""


@dataclass(frozen=True)
class _Block:
    """Rows (n, D) of which those of a class lie together, as `runs` tell; unit ones once scaled by `scales` (n, 1).

    places: where each stood, (n,).
    """

    rows: Tensor
    scales: Tensor
    places: Tensor
    runs: list[Run]

    def arranged(self, x: Tensor) -> Tensor:
        """Values (N, b) of the rows as they came, in the order of the block, scaled."""
        return x[self.places].mul_(self.scales)

    def put(self, image: Tensor, arranged: Tensor) -> None:
        """The reverse of `arranged`, scaled too, into (N, b)."""
        image[self.places] = arranged.mul_(self.scales)


class JointOperator:
    """x ↦ (K1 ⊙ K2) x / N, since its row i is ẑ_i · Σ_c G[y_i, c] (Σ_{j in c} ẑ_j x_j), G = Ŵ Ŵᵀ; or a smaller one.

    rows: the features again; heads: unit classifier rows (C, D); counts: how many rows with a direction each class has,
    (C,). The rows are held in float64, or else in their own precision, where they fit half of `memory` bytes; if not,
    they are read twice for each product. For C > 2·D the product with G is Ŵ (Ŵᵀ ·), 4·C·D² operations a vector,
    group by group of classes; else C²·D. Where besides D² < N and the rows are held, the map is that of
    `MomentsOperator`: it has the same eigenvalues other than zero, takes each row once, and its vectors D² numbers.
    `size`: the length of x. Products are in float64: the rounding of others would be eigenvalues in the null space.
    Raises DataError where the rows are not those that were counted.
    """

    def __init__(self, rows: Rows, heads: Tensor, counts: Tensor, *, memory: int) -> None:
        self._rows = rows
        self._samples = int(counts.sum())
        self._memory = memory
        self._factored = 2 * heads.shape[1] < heads.shape[0]
        self._order = torch.argsort(counts, stable=True)
        self._sizes = counts[self._order]
        self._held = self._gathered(heads.shape[1])
        if self._held is not None:
            heads = heads[self._order]
        self._heads = heads
        self._groups = self._grouped() if self._factored and self._held is not None else []
        self._squared = bool(self._groups) and heads.shape[1] ** 2 < self._samples
        self._gram = None if self._factored else heads @ heads.T

    @property
    def size(self) -> int:
        """N, or D²."""
        return self._heads.shape[1] ** 2 if self._squared else self._samples

    def __call__(self, x: Tensor) -> Tensor:
        """x (size, b) float64 → (size, b) float64."""
        classes, features = self._heads.shape
        at_once = 2 * (GROUP + features) if self._groups else 2 * classes
        columns = max(1, self._memory // 8 // (8 * features * at_once))
        by_groups = self._of_squares if self._squared else self._of_groups
        product = by_groups if self._groups else self._of_sums
        parts = [product(part) for part in x.split(columns, dim=1)]
        return torch.cat(parts, dim=1).div_(self._samples)

    def _grouped(self) -> list[tuple[list[Run], Tensor]]:
        """Of each group of classes the runs of held rows, and the heads."""
        groups, first = [], 0
        for sizes, heads in zip(self._sizes.split(GROUP), self._heads.split(GROUP), strict=True):
            groups.append((runs(sizes, first=first), heads))
            first += int(sizes.sum())
        return groups

    def _of_squares(self, x: Tensor) -> Tensor:
        """Σ_c (S_c ⊗ ŵ_c ŵ_cᵀ) x: as each class's sums are made of its products, every row is taken once."""
        held, groups = self._held, self._groups
        assert held is not None
        features, columns = self._heads.shape[1], x.shape[1]
        given, squares = x.unflatten(0, (features, features)).mT.flatten(1), held.scales.square()
        mixed = torch.zeros_like(given)
        for group, heads in groups:
            of_classes = (heads @ given).reshape(-1, columns, features)
            sums = torch.zeros_like(of_classes)
            for run in group:
                run.add_second(sums, held.rows, squares, of_classes)
            mixed.addmm_(heads.T, sums.flatten(1))
        return mixed.unflatten(1, (columns, features)).mT.flatten(0, 1)

    def _of_groups(self, x: Tensor) -> Tensor:
        """Held rows, factored: no more than a group of classes has its sums at hand."""
        held, groups = self._held, self._groups
        assert held is not None
        features, columns = self._heads.shape[1], x.shape[1]
        mixed, arranged = x.new_zeros(features, features * columns), held.arranged(x)
        for group, heads in groups:
            sums = x.new_zeros(len(heads), columns, features)
            for run in group:
                run.add_sums(sums, held.rows, arranged)
            mixed.addmm_(heads.T, sums.flatten(1))
        for group, heads in groups:
            of_classes = (heads @ mixed).reshape(-1, columns, features)
            for run in group:
                run.put_products(arranged, held.rows, of_classes)
        image = torch.empty_like(x)
        held.put(image, arranged)
        return image

    def _of_sums(self, x: Tensor) -> Tensor:
        """The sums of all classes at hand, from blocks of rows in any order."""
        (classes, features), image = self._heads.shape, torch.empty_like(x)
        sums = x.new_zeros(classes, x.shape[1], features)
        for block in self._blocks():
            part = block.arranged(x)
            for run in block.runs:
                run.add_sums(sums, block.rows, part)
        of_classes = self._mixed(sums)
        for block in self._blocks():
            part = x.new_empty(len(block.rows), x.shape[1])
            for run in block.runs:
                run.put_products(part, block.rows, of_classes)
            block.put(image, part)
        return image

    def _mixed(self, sums: Tensor) -> Tensor:
        flat = sums.flatten(1)
        if self._gram is not None:
            return (self._gram @ flat).reshape(sums.shape)
        mixed = self._heads.T @ flat
        # In place of the sums, which may be the largest array of all.
        for heads, part in zip(self._heads.split(GROUP), flat.split(GROUP), strict=True):
            torch.mm(heads, mixed, out=part)
        return sums

    def _blocks(self) -> Iterator[_Block]:
        if self._held is not None:
            yield self._held
            return
        first = 0
        for rows, scales, labels in self._unit_blocks(narrow=False):
            order, found = by_size(labels)
            first += len(labels)
            self._require(first <= self._samples, first)
            sorted_rows = rows.index_select(0, order)
            yield _Block(sorted_rows, scales.index_select(0, order), order + (first - len(labels)), found)
        self._require(first == self._samples, first)

    def _gathered(self, features: int) -> _Block | None:
        """Return all rows by class, the classes in the order of their sizes; None where they do not fit."""
        numbers, device = self._samples * features, self._sizes.device
        wide = numbers * torch.float64.itemsize <= self._memory // 2
        dtype = torch.float64 if wide else next((block.dtype for block, _ in self._rows()), torch.float64)
        if numbers * dtype.itemsize > self._memory // 2:
            return None
        rows = torch.empty(self._samples, features, dtype=dtype, device=device)
        scales = torch.empty(self._samples, 1, dtype=torch.float64, device=device)
        places = torch.empty(self._samples, dtype=torch.int64, device=device)
        free, ends, first = torch.empty_like(self._sizes), torch.empty_like(self._sizes), 0
        ends[self._order] = self._sizes.cumsum(0)
        free[self._order] = ends[self._order] - self._sizes
        for block, lengths, labels in self._unit_blocks(narrow=not wide):
            if block.dtype != dtype:
                return None
            order = torch.argsort(labels, stable=True)
            present, found = torch.unique_consecutive(labels[order], return_counts=True)
            starts = free[present]
            free[present] += found
            self._require(bool((free <= ends).all()), first + len(labels))
            within = torch.arange(len(order), device=device) - torch.repeat_interleave(found.cumsum(0) - found, found)
            targets = torch.repeat_interleave(starts, found) + within
            rows[targets] = block.index_select(0, order)
            scales[targets], places[targets] = lengths.index_select(0, order), order + first
            first += len(labels)
        self._require(first == self._samples, first)
        return _Block(rows, scales, places, runs(self._sizes))

    def _unit_blocks(self, *, narrow: bool) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield rows (m, D) that have a direction, factors (m, 1) to unit length, and their labels (m,)."""
        device = self._sizes.device
        for features, labels in self._rows():
            features = where_float64_is(features).to(device)
            unit, kept = directions(features.to(torch.float64))
            labels = labels.to(device, torch.int64)[kept]
            if narrow and features.dtype in NARROW:
                features = features[kept]
                yield features, 1 / torch.linalg.vector_norm(features, dim=1, keepdim=True, dtype=torch.float64), labels
            else:
                yield unit, torch.ones(len(unit), 1, dtype=torch.float64, device=device), labels

    def _require(self, same: bool, rows: int) -> None:
        if not same:
            raise DataError(f"the data changed between two passes: {self._samples} rows, then {rows}, or other labels")


class MomentsOperator:
    """x ↦ Σ_c (S_c ⊗ v_c v_cᵀ) x / N, (D·r, D·r), which has the eigenvalues of K1 ⊙ K2 / N other than zero.

    unit: second moments S_c of unit rows by class, whose upper triangles are filled in; labels: the classes (k,) that
    count; V (k, r): V Vᵀ = Ŵ Ŵᵀ. An application takes 2·C·D·(D + 2·r) operations a vector, whatever N is.
    """

    def __init__(self, unit: UnitMoments, labels: Tensor, V: Tensor) -> None:
        self._samples = int(unit.counts[labels].sum())
        # Classes that do not count have the vector zero: leaving them out would copy all moments.
        self._V = V.new_zeros(len(unit.second), V.shape[1])
        self._V[labels] = V
        self._second = unit.second
        for second in self._second:
            second.copy_(symmetric(second))

    @property
    def size(self) -> int:
        """D·r."""
        return self._second.shape[1] * self._V.shape[1]

    def __call__(self, x: Tensor) -> Tensor:
        """x (D·r, b) float64 → (D·r, b) float64."""
        classes, features, _ = self._second.shape
        of_classes = torch.bmm(self._second, (self._V @ x.reshape(self._V.shape[1], -1)).reshape(classes, features, -1))
        return (self._V.T @ of_classes.reshape(classes, -1)).reshape(x.shape).div_(self._samples)

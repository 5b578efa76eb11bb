"""Unit rows by class, or their second moments once these take less memory: accumulated and merged exactly."""

import copy
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ckpt_probe.metrics.rows import EPSILON, directions
from ckpt_probe.moments.class_sums import Grouped, add_outer_about_mean, group, symmetric, with_rows

if TYPE_CHECKING:
    from ckpt_probe.moments.errors.sample import Sample

DENSE_LIMIT = 12_000
"""Largest side of a matrix for the dense eigensolver (about 1.2 GB and minutes)."""

LEAST_LIMIT = 256
"""Side of a matrix that is given to the dense eigensolver with any memory budget: half a megabyte."""


def dense_limit(memory: int, limit: int | None = None) -> int:
    """Return the largest side of a matrix for the dense eigensolver: two copies fit into the memory, at least 256.

    Args:
        memory: Memory budget in bytes.
        limit: Limit in place of the default `DENSE_LIMIT`.
    """
    return min(DENSE_LIMIT if limit is None else limit, max(LEAST_LIMIT, math.isqrt(memory // 16)))


class UnitMoments:
    """Unit rows ẑ by class, stored as rows, as Σ ẑẑᵀ of each class, or only as the total Σ ẑẑᵀ.

    Args:
        features: Number of features D.
        classes: Number of classes C, or None if unknown.
        memory: Memory budget in bytes.
        device: Device of the sums.
        dtype: Precision of products of rows; rows and sums are float64.

    Attributes:
        kind: "rows" up to min(D·min(C, D), dense limit) rows, then "classes" if C·D² float64 numbers fit into the
            memory, else "total".
        counts: Number of rows with a direction in each class, (C,).
        left_out: Number of rows without a direction.
        rows: Blocks of unit rows, if `kind` is "rows".
        second: Lower triangles of the sums, (C, D, D), or (1, D, D) if `kind` is "total".
        rounding: Rounding of the trace of the sums by products in single precision.
        sample: Unit rows, labels and weights of a sample of which spectra are functions, or None.
    """

    def __init__(
        self,
        features: int,
        classes: int | None,
        memory: int,
        device: torch.device,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.kind = "rows"
        self.counts = torch.zeros(classes or 0, dtype=torch.int64, device=device)
        self.left_out = 0
        self.rows: list[Grouped] = []
        self.second = torch.zeros(0, features, features, dtype=torch.float64, device=device)
        self._features = features
        self._classes = classes
        self._memory = memory
        self._dtype = dtype
        self.rounding = 0.0
        self.sample: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def sizes(self) -> Tensor:
        """Return the number of rows with a direction in each class, (C,), float64; with gradient after `along`."""
        counts = self.counts.double()
        if self.sample is None:
            return counts
        _, labels, weights = self.sample
        return counts.index_add(0, labels, weights - weights.detach())

    @property
    def epsilon(self) -> float:
        """Return the relative precision of the sums, which in single precision is that of the centred products."""
        return max(EPSILON, self.rounding / max(1, int(self.counts.sum())))

    def along(self, sample: "Sample") -> "UnitMoments":
        """Return the moments with a sample of rows, along whose weights spectra have gradients."""
        moved = copy.copy(self)
        rows, directed = directions(sample.features)
        weights = sample.weights
        if rows.requires_grad:
            # All rows move with their mean: those of the sample stand for all others.
            weights = weights + sample.design.shares.to(weights) * sample.design.samples
        moved.sample = (rows, sample.labels[directed], weights[directed])
        return moved

    def state(self) -> dict[str, Tensor]:
        """Return copies of the unit rows or their second moments as tensors by name."""
        state = {"unit_counts": self.counts.clone(), "left_out": torch.tensor(self.left_out)}
        if self.rounding:
            state["rounding"] = torch.tensor(self.rounding, dtype=torch.float64)
        if self.kind == "rows" and not self.rows:
            return {**state, "rows": self.second.new_zeros(0, self.second.shape[1]), "row_labels": self.counts[:0]}
        if self.kind == "rows":
            stored = self.all_rows()
            return {**state, "rows": stored.rows, "row_labels": stored.labels[stored.each()]}
        return {**state, "second" if self.kind == "classes" else "total": symmetric(self.second)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Replace all rows by the tensors of a state, which become part of this object."""
        self.counts, self.left_out = state["unit_counts"], int(state["left_out"])
        self.rounding = float(state.get("rounding", 0.0))
        if "rows" in state:
            self.rows = [group(state["rows"], state["row_labels"])]
        else:
            self.kind = "classes" if "second" in state else "total"
            self.second = state["second" if "second" in state else "total"].contiguous()

    def update(self, block: Grouped) -> None:
        """Add a block of rows; rows of zero length are counted and left out."""
        unit, directed = directions(block.rows.to(torch.float64))
        self.left_out += len(directed) - len(unit)
        complete = len(unit) == len(directed)
        labels = block.labels if complete else block.labels[block.each()[directed]]
        self._add(Grouped(unit, labels, block.sizes) if complete else group(unit, labels))
        self._settle()

    def merge(self, other: "UnitMoments") -> None:
        """Add the rows of another object; the result has the coarser kind of both."""
        self.left_out += other.left_out
        self.rounding += other.rounding
        device = self.counts.device
        if other.kind == "rows":
            for block in list(other.rows):
                self._add(Grouped(block.rows.to(device), block.labels.to(device), block.sizes.to(device)))
        else:
            self._become("total" if "total" in (self.kind, other.kind) else "classes")
            second = other.second.to(device)
            self._grow(len(other.counts))
            self.counts[: len(other.counts)] += other.counts.to(device)
            if self.kind == "total":
                self.second += second.sum(dim=0)
            else:
                self.second[: len(second)] += second
        self._settle()

    def all_rows(self) -> Grouped:
        """Return all unit rows sorted by label, if `kind` is "rows"."""
        if len(self.rows) > 1:
            rows = torch.cat([block.rows for block in self.rows])
            self.rows = [group(rows, torch.cat([block.labels[block.each()] for block in self.rows]))]
        return self.rows[0]

    def rows_where(self, mask: Tensor) -> Grouped:
        """Return the unit rows of the classes that a mask (C,) selects, if `kind` is "rows"."""
        rows = self.all_rows()
        selected = mask[rows.labels]
        if bool(selected.all()):
            return rows
        each = rows.each()
        return group(rows.rows[selected[each]], rows.labels[each[selected[each]]])

    def of_classes(self, labels: Tensor) -> Tensor:
        """Return Σ ẑẑᵀ of some classes, (k, D, D), if `kind` is "rows" or "classes"."""
        if self.kind == "rows":
            rows = self.all_rows()
            by_label = dict(zip(rows.labels.tolist(), rows.by_class(), strict=True))
            return torch.stack([by_label[label].T @ by_label[label] for label in labels.tolist()])
        return symmetric(self.second[labels])

    def needed(self) -> int:
        """Return the number of bytes of one second moment per class."""
        return 8 * self._features**2 * (self._classes or int((self.counts > 0).sum()))

    def _add(self, block: Grouped) -> None:
        if not len(block.rows):
            return
        self._grow(int(block.labels[-1]) + 1)
        self.counts[block.labels] += block.sizes
        if self.kind == "rows":
            self.rows.append(block)
        elif self.kind == "total":
            self.rounding += add_outer_about_mean(self.second[0], block.rows, self._dtype)
        else:
            for label, rows in zip(block.labels.tolist(), block.by_class(), strict=True):
                self.rounding += add_outer_about_mean(self.second[label], rows, self._dtype)

    def _settle(self) -> None:
        """Change to a coarser kind if the present one takes too much memory."""
        if self.kind == "rows":
            features, present = self._features, self._classes or int((self.counts > 0).sum())
            if int(self.counts.sum()) > min(features * min(present, features), dense_limit(self._memory)):
                self._become("classes")
        if self.kind == "classes" and self.needed() > self._memory:
            self._become("total")

    def _become(self, kind: str) -> None:
        if kind == self.kind:
            return
        if kind == "classes" and self.needed() > self._memory:
            kind = "total"
        if self.kind == "rows":
            blocks, self.rows, self.kind = self.rows, [], kind
            shape = (1 if kind == "total" else len(self.counts), self._features, self._features)
            self.second = self.second.new_zeros(shape)
            self.counts.zero_()
            for block in blocks:
                self._add(block)
            return
        self.kind, self.second = kind, self.second.sum(dim=0, keepdim=True)

    def _grow(self, classes: int) -> None:
        if classes > len(self.counts):
            self.counts = with_rows(self.counts, classes)
        if self.kind == "classes" and len(self.counts) > len(self.second):
            self.second = with_rows(self.second, len(self.counts))

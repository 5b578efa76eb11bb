"""Second moments of unit rows in each class, or the rows themselves while they are fewer."""

import torch
from torch import Tensor

from ckpt_probe.metrics.gram import directions
from ckpt_probe.moments.grouping import Grouped, group
from ckpt_probe.moments.levels.routes import dense_limit
from ckpt_probe.moments.outer_products import add_outer, symmetric

FEW = 32
"""Rows below which their mean would add much to the work of their product, which is then in double precision."""


class UnitMoments:
    """Unit rows ẑ by class: kept as rows, as Σ ẑẑᵀ of each class, or only as the total Σ ẑẑᵀ.

    `kind` is "rows" while there are at most min(D·min(C, D), the dense limit) of them, then "classes" while C·D²
    doubles fit `memory` bytes, else "total". counts: rows with a direction in each class; left_out: those without. Rows
    are float64, their products in `dtype`.
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

    def update(self, block: Grouped) -> None:
        """Add the rows of a block; those of zero length are counted and left out."""
        for piece in block.split():
            unit, kept = directions(piece.rows.to(torch.float64))
            self.left_out += len(kept) - len(unit)
            self._add(Grouped(unit, piece.labels, piece.sizes) if len(unit) == len(kept) else _kept(piece, unit, kept))
            self._settle()

    def merge(self, other: "UnitMoments") -> None:
        """Add what another has seen; the result is of the coarser kind of the two."""
        self.left_out += other.left_out
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
        """The unit rows seen, sorted by label; only of kind "rows"."""
        if len(self.rows) > 1:
            rows = torch.cat([block.rows for block in self.rows])
            self.rows = [group(rows, torch.cat([block.labels[block.each()] for block in self.rows]))]
        return self.rows[0]

    def of_classes(self, labels: Tensor) -> Tensor:
        """Σ ẑẑᵀ of some classes, (k, D, D); of the kinds "rows" and "classes"."""
        if self.kind == "rows":
            held = self.all_rows()
            by_label = dict(zip(held.labels.tolist(), held.by_class(), strict=True))
            return torch.stack([by_label[label].T @ by_label[label] for label in labels.tolist()])
        return symmetric(self.second[labels])

    def total(self) -> Tensor:
        """Σ ẑẑᵀ over all rows, (D, D); of the kinds "classes" and "total"."""
        return symmetric(self.second.sum(dim=0))

    def needed(self) -> int:
        """Bytes that one second moment a class takes."""
        return 8 * self._features**2 * (self._classes or int((self.counts > 0).sum()))

    def _add(self, block: Grouped) -> None:
        if not len(block.rows):
            return
        self._grow(int(block.labels[-1]) + 1)
        self.counts[block.labels] += block.sizes
        if self.kind == "rows":
            self.rows.append(block)
        elif self.kind == "total":
            self._add_outer(self.second[0], block.rows)
        else:
            for label, rows in zip(block.labels.tolist(), block.by_class(), strict=True):
                self._add_outer(self.second[label], rows)

    def _add_outer(self, total: Tensor, rows: Tensor) -> None:
        """Add rowsᵀ rows as those of rows less their mean and that of the mean, so that close rows lose no digit."""
        if len(rows) < FEW:
            add_outer(total, rows)
            return
        mean = rows.mean(dim=0)
        add_outer(total, (rows - mean).to(self._dtype))
        add_outer(total, mean[None] * len(rows) ** 0.5)

    def _settle(self) -> None:
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
            held, self.rows, self.kind = self.rows, [], kind
            shape = (1 if kind == "total" else len(self.counts), self._features, self._features)
            self.second = self.second.new_zeros(shape)
            self.counts.zero_()
            for block in held:
                self._add(block)
            return
        self.kind, self.second = kind, self.second.sum(dim=0, keepdim=True)

    def _grow(self, classes: int) -> None:
        more = classes - len(self.counts)
        if more > 0:
            self.counts = torch.cat([self.counts, self.counts.new_zeros(more)])
        if self.kind == "classes" and len(self.second) < len(self.counts):
            missing = len(self.counts) - len(self.second)
            self.second = torch.cat([self.second, self.second.new_zeros(missing, *self.second.shape[1:])])


def _kept(block: Grouped, unit: Tensor, kept: Tensor) -> Grouped:
    return group(unit, block.labels[block.each()[kept]])

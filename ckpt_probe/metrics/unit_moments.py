"""Second moments of unit rows in each class, or the rows themselves while they are fewer."""

import torch
from torch import Tensor

from ckpt_probe.metrics.gram import directions
from ckpt_probe.metrics.scatter import Groups

DENSE_LIMIT = 12_000
"""Largest side of a matrix that is handed to the dense eigensolver (about 1.2 GB and minutes)."""


class UnitMoments:
    """Unit rows ẑ by class: kept as rows, as Σ ẑẑᵀ of each class, or only as the total Σ ẑẑᵀ.

    `kind` is "rows" while there are at most min(D·min(C, D), DENSE_LIMIT) of them, then "classes" while C·D² doubles
    fit `memory` bytes, else "total".
    """

    def __init__(self, classes: int | None, memory: int) -> None:
        self.kind = "rows"
        self.counts: dict[int, int] = {}
        self.left_out = 0
        self.rows: dict[int, list[Tensor]] = {}
        self.second: dict[int, Tensor] = {}
        self.total: Tensor | None = None
        self._classes = classes
        self._memory = memory

    def update(self, groups: Groups) -> None:
        """Add the rows of a block by label; rows of zero length are counted and left out."""
        for label, rows in groups:
            unit, _ = directions(rows)
            self.left_out += rows.shape[0] - unit.shape[0]
            if unit.shape[0]:
                self._add(label, unit)
        self._settle()

    def merge(self, other: "UnitMoments", device: torch.device | None) -> None:
        """Add what another has seen; the result is of the coarser kind of the two."""
        self.left_out += other.left_out
        for label, blocks in other.rows.items():
            for rows in blocks:
                self._add(label, rows.to(device))
        for label, moment in other.second.items():
            self._become(self.kind if self.kind == "total" else "classes")
            self.counts[label] = self.counts.get(label, 0) + other.counts[label]
            self._add_second(label, moment.to(device))
        if other.total is not None:
            self._become("total")
            self.total = other.total.to(device) + (0 if self.total is None else self.total)
            for label, count in other.counts.items():
                self.counts[label] = self.counts.get(label, 0) + count
        self._settle()

    def of_class(self, label: int) -> Tensor:
        """The unit rows of one class, (n_c, D); only of kind "rows"."""
        blocks = self.rows[label]
        if len(blocks) > 1:
            self.rows[label] = [torch.cat(blocks)]
        return self.rows[label][0]

    def needed(self) -> int:
        """Bytes that one second moment a class would take."""
        features = self._features()
        return 8 * features * features * (self._classes or len(self.counts))

    def _add(self, label: int, unit: Tensor) -> None:
        self.counts[label] = self.counts.get(label, 0) + unit.shape[0]
        if self.kind == "rows":
            self.rows.setdefault(label, []).append(unit)
        else:
            self._add_second(label, unit.T @ unit)

    def _add_second(self, label: int, moment: Tensor) -> None:
        if self.kind == "total":
            self.total = moment if self.total is None else self.total + moment
        elif label in self.second:
            self.second[label] += moment
        else:
            self.second[label] = moment.clone()

    def _settle(self) -> None:
        if not self.counts:
            return
        if self.kind == "rows":
            features = self._features()
            most = features * min(self._classes or len(self.counts), features)
            if sum(self.counts.values()) > min(most, DENSE_LIMIT):
                self._become("classes" if self.needed() <= self._memory else "total")
        elif self.kind == "classes" and self.needed() > self._memory:
            self._become("total")

    def _become(self, kind: str) -> None:
        if kind == self.kind:
            return
        self.kind = kind
        for label in list(self.rows):
            for rows in self.rows.pop(label):
                self._add_second(label, rows.T @ rows)
        if kind == "total":
            for label in list(self.second):
                self._add_second(label, self.second.pop(label))

    def _features(self) -> int:
        if self.total is not None:
            return self.total.shape[0]
        held = next(iter(self.second.values()), None)
        return held.shape[1] if held is not None else next(iter(self.rows.values()))[0].shape[1]

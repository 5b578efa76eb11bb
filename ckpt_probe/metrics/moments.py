"""Class moments of a stream of labelled features: one pass, mergeable, and every metric from them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ckpt_probe.errors import DataError
from ckpt_probe.metrics.gram import Array, require_finite
from ckpt_probe.metrics.readout import read_out
from ckpt_probe.metrics.scatter import Scatter
from ckpt_probe.metrics.unit_moments import UnitMoments

MEMORY = 2 * 2**30
"""Bytes that second moments may take where a caller names no other budget."""


class Moments:
    """Accumulates labelled features (rows of D numbers); `compute` reads every metric that moments allow from them.

    `update` takes a block of rows, `merge` another accumulator, in any order and number: the result is that of one
    pass over all rows, up to rounding. Kept, in float64: counts, means and the within-class scatter (C·D + D²), and
    of the unit rows either the rows themselves, while there are fewer than D·min(C, D), or their second moment in
    each class (C·D²). Memory therefore does not grow with the number of rows. Where C·D² is over `memory` bytes only
    the total second moment is kept, and what needs the classes' own is missing, with the reason.

    classes: number of classes; where None, labels may be any whole number ≥ 0. device: where the moments live, that
    of the first block where None.
    """

    def __init__(self, classes: int | None = None, *, device: torch.device | str | None = None, memory: int = MEMORY):
        if classes is not None and classes < 2:
            raise DataError(f"neural collapse and mutual information need at least two classes, found {classes}")
        self.classes = classes
        self.device = torch.device(device) if device is not None else None
        self._scatter = Scatter()
        self._unit = UnitMoments(classes, memory)

    @property
    def samples(self) -> int:
        """Rows seen so far, those of zero length included."""
        return sum(self._scatter.counts.values())

    @property
    def features(self) -> int | None:
        """D, None before the first block."""
        return self._scatter.features

    @property
    def counts(self) -> dict[int, int]:
        """Rows seen of each class that has any."""
        return dict(sorted(self._scatter.counts.items()))

    @property
    def class_means(self) -> Tensor:
        """Mean feature of each class, (C, D) float64; rows of NaN for classes without a sample."""
        classes = self.classes or max(self._scatter.means) + 1
        means = torch.full((classes, self._require_rows()), torch.nan, dtype=torch.float64, device=self.device)
        for label, mean in self._scatter.means.items():
            means[label] = mean
        return means

    @property
    def mean(self) -> Tensor:
        """Mean feature over all rows, (D,) float64."""
        self._require_rows()
        counts = torch.tensor(list(self._scatter.counts.values()), dtype=torch.float64, device=self.device)
        return counts @ torch.stack(list(self._scatter.means.values())) / counts.sum()

    def update(self, features: Array, labels: Array | Sequence[int]) -> None:
        """Add a block: features (n, D) of any floating dtype, labels (n,) whole numbers.

        Raises DataError for NaN or infinity (how many rows, the first one), for labels outside 0 … C−1 (the first
        one), and where shapes do not fit; the accumulator is then unchanged. Row numbers count from the first block.
        """
        rows, numbers = self._checked(features, labels)
        if not rows.shape[0]:
            return
        order = torch.argsort(numbers, stable=True)
        rows, numbers = rows[order].to(torch.float64), numbers[order]
        present, sizes = torch.unique_consecutive(numbers, return_counts=True)
        groups = list(zip(present.tolist(), rows.split(sizes.tolist()), strict=True))
        self._scatter.update(rows, groups)
        self._unit.update(groups)

    def merge(self, other: "Moments") -> None:
        """Add what another accumulator has seen. Raises DataError where D or C differ, naming both."""
        if other.features is None:
            return
        if self.features is not None and self.features != other.features:
            raise DataError(f"moments of {self.features} features cannot be merged with moments of {other.features}")
        if self.classes != other.classes:
            raise DataError(f"moments of {self.classes} classes cannot be merged with moments of {other.classes}")
        self.device = self.device or other.device
        self._scatter.merge(other._scatter, self.device)
        self._unit.merge(other._unit, self.device)

    def compute(self, weights: Array | None = None, bias: Array | None = None) -> dict[str, float | int | str | None]:
        """The record of these moments: dotted metric names to numbers (nats where entropies), None where undefined.

        weights: classifier weights (C, D); without them what needs them is None. bias (C,) is accepted beside them
        and enters no entropy. `missing` holds the reasons for what is None, one string; `route` names how the joint
        entropy was computed. Raises DataError where nothing was added, shapes do not fit, or rows have no direction.
        """
        self._require_rows()
        rows = _checked_weights(weights, bias, self)
        classes = self.classes or (rows.shape[0] if rows is not None else max(self._scatter.means) + 1)
        return read_out(classes, self._scatter, self._unit, rows)

    def _require_rows(self) -> int:
        if self.features is None:
            raise DataError("no samples: there is nothing to compute from")
        return self.features

    def _checked(self, features: Array, labels: Array | Sequence[int]) -> tuple[Tensor, Tensor]:
        rows = torch.as_tensor(features)
        numbers = torch.as_tensor(labels if isinstance(labels, Tensor) else np.asarray(labels))
        if rows.ndim != 2 or numbers.ndim != 1 or rows.shape[0] != numbers.shape[0]:
            shapes = f"{tuple(rows.shape)} and {tuple(numbers.shape)}"
            raise DataError(f"features and labels: expected (n, D) and (n,), found {shapes}")
        if self.features is not None and rows.shape[1] != self.features:
            raise DataError(f"features: a block of {rows.shape[1]} columns after blocks of {self.features}")
        if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
            raise DataError(f"labels: expected whole numbers, found {numbers.dtype}")
        self.device = self.device or rows.device
        rows, numbers = rows.detach().to(self.device), numbers.to(self.device, torch.int64)
        require_finite(rows, "features", self.samples)
        self._require_range(numbers)
        return rows, numbers

    def _require_range(self, numbers: Tensor) -> None:
        highest = self.classes - 1 if self.classes is not None else None
        outside = numbers < 0 if highest is None else (numbers < 0) | (numbers > highest)
        if bool(outside.any()):
            first = int(outside.nonzero()[0])
            allowed = "at least 0" if highest is None else f"between 0 and {highest}"
            raise DataError(f"labels: row {first + self.samples} is {int(numbers[first])}, labels must be {allowed}")


def _checked_weights(weights: Array | None, bias: Array | None, moments: Moments) -> Tensor | None:
    if weights is None:
        return None
    rows = torch.as_tensor(weights).detach().to(moments.device, torch.float64)
    if rows.ndim != 2 or rows.shape[1] != moments.features:
        expected = f"(classes, {moments.features})"
        raise DataError(f"classifier weights: expected shape {expected}, found {tuple(rows.shape)}")
    require_finite(rows, "classifier weights")
    highest = max(moments.counts)
    if highest >= rows.shape[0] or moments.classes not in (None, rows.shape[0]):
        found = f"labels go up to {highest}" if moments.classes is None else f"there are {moments.classes} classes"
        raise DataError(f"classifier weights have {rows.shape[0]} rows, but {found}")
    if bias is not None and tuple(torch.as_tensor(bias).shape) != (rows.shape[0],):
        raise DataError(
            f"classifier bias: expected shape ({rows.shape[0]},), found {tuple(torch.as_tensor(bias).shape)}"
        )
    return rows

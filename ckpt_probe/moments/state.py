"""Sums of all rows or of a half, as named tensors and back, and checks of tensors that come from a file."""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ckpt_probe.errors import DataError
from ckpt_probe.moments.class_sums import Scatter, cached_rows, group, rows_at_once
from ckpt_probe.moments.errors.subset import OF_ROWS
from ckpt_probe.moments.errors.subset import PREFIX as OF_SUBSET
from ckpt_probe.moments.registry import SCATTER, UNIT_ROWS
from ckpt_probe.moments.unit_moments import UnitMoments

if TYPE_CHECKING:
    from ckpt_probe.moments.errors.sample import Sample

ALWAYS = ("counts", "means", "squares")
OF_UNIT = ("unit_counts", "left_out")
UNIT_KINDS = ("rows", "second", "total")
WHOLE_NUMBERS = frozenset({"counts", "unit_counts", "left_out", "row_labels"})
MANY_CLASSES = 2048
HALVES = ("first_half.", "second_half.")
"""Prefixes of the names of tensors of the two halves; those of the whole have none."""

State = dict[str, Tensor]


@dataclass(frozen=True)
class Sums:
    """Sums of all rows, or of a half of them.

    Attributes:
        scatter: Class means and scatter.
        unit: Unit rows or their second moments, or None.
    """

    scatter: Scatter
    unit: UnitMoments | None

    def add(self, rows: Tensor, labels: Tensor, size: float, classes: int | None) -> None:
        """Add rows.

        Args:
            rows: Rows, (n, D).
            labels: Labels, (n,), int64.
            size: Largest absolute entry of the rows, or more.
            classes: Number of classes, if it is known.
        """
        if not len(rows):
            return
        self.scatter.fit(size)
        at_once = rows_at_once(rows.shape[1], max(len(self.scatter.counts), classes or 0))
        for some, of_some in zip(rows.split(at_once), labels.split(at_once), strict=True):
            block = group(some, of_some)
            if len(block.rows) <= cached_rows(rows.shape[1]):
                block = block.to(torch.float64)
            self.scatter.update(block)
            if self.unit is not None:
                for piece in block.split():
                    self.unit.update(piece)

    def merge(self, other: "Sums") -> None:
        """Add the rows of other sums."""
        self.scatter.merge(other.scatter)
        if self.unit is not None and other.unit is not None:
            self.unit.merge(other.unit)

    def along(self, sample: "Sample") -> "Sums":
        """Return the sums as functions of the weights of the rows of a sample, with gradient."""
        # Then no metric of class means has an error, and gradients of all pairs would need much memory.
        scatter = self.scatter if sample.misses and sample.classes > MANY_CLASSES else self.scatter.along(sample)
        return Sums(scatter, None if self.unit is None else self.unit.along(sample))

    def along_half(self, sample: "Sample", number: int) -> "Sums":
        """Return the sums of a half, 0 or 1, whose means and scatter are functions of the weights of its rows."""
        if sample.reason or not len(self.scatter.counts) or (sample.misses and sample.classes > MANY_CLASSES):
            return self
        return Sums(self.scatter.along(sample.of_half(number, self.scatter.counts)), self.unit)

    def state(self) -> State:
        """Return copies of all sums as tensors by name."""
        return self.scatter.state() | ({} if self.unit is None else self.unit.state())

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Replace all sums by the tensors of a state, which become part of this object."""
        self.scatter.load(state)
        if self.unit is not None:
            self.unit.load(state)


def divided_state(state: Mapping[str, Tensor]) -> tuple[State, State, list[State]]:
    """Return the tensors of the subset, of the whole, and of each half without their prefix; no halves if none are."""
    subset = {name: tensor for name, tensor in state.items() if name.startswith(OF_SUBSET)}
    halves = [
        {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        for prefix in HALVES
    ]
    total = {name: tensor for name, tensor in state.items() if not name.startswith((OF_SUBSET, *HALVES))}
    return subset, total, [half for half in halves if half] if all(halves) else []


def require_subset(subset: Mapping[str, Tensor], total: Mapping[str, Tensor]) -> None:
    """Check the tensors of a subset of rows against those of all rows; no tensor at all is valid.

    Raises:
        DataError: If a tensor is missing, or has another dtype, shape or range than expected.
    """
    if not subset:
        return
    required, documents = OF_ROWS[:4], OF_ROWS[4:]
    if {name.removeprefix(OF_SUBSET) for name in subset} not in ({*required}, {*required, *documents}):
        raise DataError(f"stored moments: the subset needs {', '.join(required)}, found {', '.join(subset)}")
    features, labels, counts = subset[OF_SUBSET + "features"], subset[OF_SUBSET + "labels"], total["counts"]
    dtype = features.dtype if features.is_floating_point() else torch.float64
    _require(OF_SUBSET + "features", features, dtype, (None, total["means"].shape[1]))
    for name in subset.keys() - {OF_SUBSET + "features"}:
        _require(name, subset[name], torch.int64, (len(features),))
    seen = torch.bincount(labels, minlength=len(counts))
    if len(seen) > len(counts) or bool((seen > counts.to(seen.device)).any()):
        raise DataError(f"stored moments: {OF_SUBSET}labels does not agree with counts")


def require_state(state: Mapping[str, Tensor], classes: int | None, requirements: Set[str]) -> None:
    """Check the tensors of `Moments.state_dict`.

    Args:
        state: Tensors by name.
        classes: Number of classes, or None if unknown.
        requirements: Requirements of the metrics that are to be computed.

    Raises:
        DataError: If a tensor is missing, or has another dtype, shape or range than expected.
    """
    unit = UNIT_ROWS in requirements
    needed = (*ALWAYS, *(("within",) if SCATTER in requirements else ()), *(OF_UNIT if unit else ()))
    missing = [name for name in needed if name not in state]
    kinds = [name for name in UNIT_KINDS if name in state]
    if missing or (unit and len(kinds) != 1) or ("rows" in state and "row_labels" not in state):
        raise DataError(f"stored moments: missing {', '.join(missing) or 'one of ' + ', '.join(UNIT_KINDS)}")
    seen, features = state["means"].shape[0], state["means"].shape[-1]
    if classes is not None and seen > classes:
        raise DataError(f"stored moments cover {seen} classes, but there are only {classes}")
    shapes: dict[str, tuple[int | None, ...]] = {
        "counts": (seen,),
        "means": (seen, features),
        "squares": (seen,),
        "unit": (),
        "within": (features, features),
        "left_out": (),
        "rounding": (),
        "rows": (None, features),
        "second": (None, features, features),
        "total": (1, features, features),
    }
    for name, tensor in state.items():
        _require(name, tensor, torch.int64 if name in WHOLE_NUMBERS else torch.float64, shapes.get(name))
    if "unit" in state and not float(state["unit"]) > 0:
        raise DataError(f"stored moments: unit is {float(state['unit']):g}, expected a positive number")
    if "unit_counts" not in state:
        return
    of_unit = state["unit_counts"]
    if len(of_unit) < seen or bool((of_unit[:seen] > state["counts"]).any()):
        raise DataError("stored moments: unit_counts does not agree with counts")
    if "second" in state and len(state["second"]) != len(of_unit):
        raise DataError(f"stored moments: second covers {len(state['second'])} classes, unit_counts {len(of_unit)}")
    if "rows" in state and not torch.equal(torch.bincount(state["row_labels"], minlength=len(of_unit)), of_unit):
        raise DataError("stored moments: row_labels does not agree with unit_counts")


def _require(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int | None, ...] | None) -> None:
    """Raise DataError if a tensor has another dtype or shape, is not finite, or has negative whole numbers."""
    actual = tuple(tensor.shape)
    if tensor.dtype != dtype:
        raise DataError(f"stored moments: {name} is {tensor.dtype}, expected {dtype}")
    fits = shape is None or (
        len(shape) == len(actual) and all(s in (None, a) for s, a in zip(shape, actual, strict=True))
    )
    if not fits:
        raise DataError(f"stored moments: {name} has shape {actual}, expected {shape}")
    if not bool(torch.isfinite(tensor).all()):
        raise DataError(f"stored moments: {name} contains NaN or infinity")
    if dtype == torch.int64 and bool((tensor < 0).any()):
        raise DataError(f"stored moments: {name} contains negative numbers")

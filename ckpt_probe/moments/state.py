"""Stored class moments: unit rows as named tensors and back, and checks of tensors that come from a file."""

from collections.abc import Mapping, Set

import torch
from torch import Tensor

from ckpt_probe.errors import DataError
from ckpt_probe.moments.class_sums import UnitMoments, symmetric
from ckpt_probe.moments.grouping import group
from ckpt_probe.moments.registry import SCATTER, UNIT_ROWS

ALWAYS = ("counts", "means", "squares")
OF_UNIT = ("unit_counts", "left_out")
UNIT_KINDS = ("rows", "second", "total")
WHOLE_NUMBERS = frozenset({"counts", "unit_counts", "left_out", "row_labels"})


def state_of_unit_moments(unit: UnitMoments) -> dict[str, Tensor]:
    """Return copies of the unit rows or their second moments as tensors by name."""
    state = {"unit_counts": unit.counts.clone(), "left_out": torch.tensor(unit.left_out)}
    if unit.kind == "rows" and not unit.rows:
        return {**state, "rows": unit.second.new_zeros(0, unit.second.shape[1]), "row_labels": unit.counts[:0]}
    if unit.kind == "rows":
        stored = unit.all_rows()
        return {**state, "rows": stored.rows, "row_labels": stored.labels[stored.each()]}
    return {**state, "second" if unit.kind == "classes" else "total": symmetric(unit.second)}


def load_unit_moments(unit: UnitMoments, state: Mapping[str, Tensor]) -> None:
    """Replace the contents of `unit` by the tensors of a state, which become part of it."""
    unit.counts, unit.left_out = state["unit_counts"], int(state["left_out"])
    if "rows" in state:
        unit.rows = [group(state["rows"], state["row_labels"])]
    else:
        unit.kind = "classes" if "second" in state else "total"
        unit.second = state["second" if "second" in state else "total"].contiguous()


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
    shapes = {
        "counts": (seen,),
        "means": (seen, features),
        "squares": (seen,),
        "unit": (),
        "within": (features, features),
        "left_out": (),
        "rows": (None, features),
        "second": (None, features, features),
        "total": (1, features, features),
    }
    for name, tensor in state.items():
        wanted = torch.int64 if name in WHOLE_NUMBERS else torch.float64
        if tensor.dtype != wanted:
            raise DataError(f"stored moments: {name} is {tensor.dtype}, expected {wanted}")
        shape = shapes.get(name)
        actual = tuple(tensor.shape)
        if shape is not None and (
            len(shape) != len(actual) or any(s not in (None, a) for s, a in zip(shape, actual, strict=True))
        ):
            raise DataError(f"stored moments: {name} has shape {actual}, expected {shape}")
        if not bool(torch.isfinite(tensor).all()):
            raise DataError(f"stored moments: {name} contains NaN or infinity")
        if name in WHOLE_NUMBERS and bool((tensor < 0).any()):
            raise DataError(f"stored moments: {name} contains negative numbers")
    if "unit" in state and not float(state["unit"]) > 0:
        raise DataError(f"stored moments: unit is {float(state['unit']):g}, expected a positive number")
    if "unit_counts" in state:
        _require_labels(state)


def _require_labels(state: Mapping[str, Tensor]) -> None:
    counts, classes = state["unit_counts"], len(state["unit_counts"])
    if classes < len(state["counts"]) or bool((counts[: len(state["counts"])] > state["counts"]).any()):
        raise DataError("stored moments: unit_counts does not agree with counts")
    if "second" in state and state["second"].shape[0] != classes:
        raise DataError(f"stored moments: second covers {state['second'].shape[0]} classes, unit_counts {classes}")
    if "rows" in state and not torch.equal(torch.bincount(state["row_labels"], minlength=classes), counts):
        raise DataError("stored moments: row_labels does not agree with unit_counts")

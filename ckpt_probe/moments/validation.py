"""What stored moments have to look like before anything is computed from them."""

from collections.abc import Mapping, Set

import torch
from torch import Tensor

from ckpt_probe.errors import DataError
from ckpt_probe.moments.registry import SCATTER, UNIT_ROWS

ALWAYS = ("counts", "means", "squares")
OF_UNIT = ("unit_counts", "left_out")
UNIT_KINDS = ("rows", "second", "total")
WHOLE = frozenset({"counts", "unit_counts", "left_out", "row_labels"})


def require_state(state: Mapping[str, Tensor], classes: int | None, requirements: Set[str]) -> None:
    """Raise DataError where the tensors of `Moments.state_dict` are not what they have to be, or not all there.

    requirements: requirements of the metrics that are to be computed from them.
    """
    unit = UNIT_ROWS in requirements
    needed = (*ALWAYS, *(("within",) if SCATTER in requirements else ()), *(OF_UNIT if unit else ()))
    missing = [name for name in needed if name not in state]
    held = [name for name in UNIT_KINDS if name in state]
    if missing or (unit and len(held) != 1) or ("rows" in state and "row_labels" not in state):
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
        wanted = torch.int64 if name in WHOLE else torch.float64
        if tensor.dtype != wanted:
            raise DataError(f"stored moments: {name} is {tensor.dtype}, expected {wanted}")
        shape = shapes.get(name)
        found = tuple(tensor.shape)
        if shape is not None and (
            len(shape) != len(found) or any(s not in (None, f) for s, f in zip(shape, found, strict=True))
        ):
            raise DataError(f"stored moments: {name} has shape {found}, expected {shape}")
        if not bool(torch.isfinite(tensor).all()):
            raise DataError(f"stored moments: {name} contains NaN or infinity")
        if name in WHOLE and bool((tensor < 0).any()):
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

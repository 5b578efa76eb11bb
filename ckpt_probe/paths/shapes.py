"""Shapes of a path as functions α → state dict: line, arc, curves over a third point M; and their lengths."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ckpt_probe.checkpoints import State
from ckpt_probe.errors import DataError

Path = Callable[[float], State]

Curve = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""Function of one tensor of A, of M and of B, and α, that returns the tensor at α."""

COLINEAR = 1e-6
"""Sine of the angle below which two tensors count as parallel, so that the arc is a line."""

PIECES = 32
"""Number of straight pieces by which the length of a curve is measured."""


def path_of(shape: str, a: State, b: State, middle: State | None = None) -> Path:
    """Return the path of that shape from a (α = 0) to b (α = 1); a curve bends over `middle`."""
    if middle is None:
        return partial(ARCS[shape], a, b)
    return partial(on_curve, shape, a, middle, b)


def linear(a: State, b: State, alpha: float) -> dict[str, Tensor]:
    """Compute the point at `alpha` between state dicts a (α = 0) and b (α = 1), both of which are exact.

    Tensors are blended in float32 (float64 for float64) and rounded to their dtype. Integer and boolean tensors are
    those of a, except at α = 1.

    Raises:
        DataError: If a number is NaN or infinite, naming the tensor.
    """
    return {name: between(name, tensor, b[name], alpha) for name, tensor in a.items()}


def between(name: str, a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """Compute one tensor of `linear`."""
    require_finite(name, a, b)
    if alpha == 0 or alpha == 1:
        return b if alpha == 1 else a
    if not a.is_floating_point():
        return a
    exact = exact_dtype(a)
    # torch.lerp starts at the nearer end, so it is exact where both agree, like the streaming writer.
    return torch.lerp(a.to(exact), b.to(exact), alpha).to(a.dtype)


def exact_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype in which a tensor is blended: float64 for float64, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def require_finite(name: str, *tensors: Tensor) -> None:
    """Raise DataError if one of the tensors contains NaN or infinity."""
    for tensor in tensors:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DataError(f"tensor {name!r} contains NaN or infinity and cannot be interpolated")


def slerp(a: State, b: State, alpha: float) -> dict[str, Tensor]:
    """Compute sin((1−α)Ω)/sin Ω · a + sin(αΩ)/sin Ω · b for each tensor, Ω the angle between the two (Shoemake 1985).

    Both ends are exact. Parallel tensors follow the line; integer and boolean tensors are those of a, except at α = 1.
    Computed in float64 and rounded to the tensor's dtype.

    Raises:
        DataError: If a number is NaN or infinite, naming the tensor.
    """
    return {name: _arc(name, tensor, b[name], alpha) for name, tensor in a.items()}


def bezier(a: Tensor, middle: Tensor, b: Tensor, alpha: float) -> Tensor:
    """Compute (1−α)² A + 2α(1−α) M + α² B by de Casteljau's lines, which are exact where all three agree."""
    return torch.lerp(torch.lerp(a, middle, alpha), torch.lerp(middle, b, alpha), alpha)


def polychain(a: Tensor, middle: Tensor, b: Tensor, alpha: float) -> Tensor:
    """Compute the line from A to M up to α = 1/2, and the line from M to B after it."""
    return torch.lerp(a, middle, 2 * alpha) if alpha <= 0.5 else torch.lerp(middle, b, 2 * alpha - 1)


CURVES: dict[str, Curve] = {"bezier": bezier, "polychain": polychain}


def on_curve(curve: str, a: State, middle: State, b: State, alpha: float) -> dict[str, Tensor]:
    """Compute the point at `alpha` in [0, 1] on the curve from a to b over M, with the precision of `linear`.

    Raises:
        DataError: If a number is NaN or infinite, naming the tensor.
    """
    return {name: _bent(name, CURVES[curve], tensor, middle[name], b[name], alpha) for name, tensor in a.items()}


ARCS = {"linear": linear, "slerp": slerp}
"""Shapes without a third point: functions (state dict a, state dict b, α) → state dict."""


def distances(a: State, b: State) -> list[dict[str, Any]]:
    """Return name, ‖b − a‖ and cosine of a and b for each floating-point tensor; no cosine if one is zero."""
    records = []
    for name, first, second in _flat_pairs(a, b):
        lengths = float(torch.linalg.vector_norm(first) * torch.linalg.vector_norm(second))
        cosine = float((first * second).sum()) / lengths if lengths > 0 else None
        records.append({"name": name, "distance": float(torch.linalg.vector_norm(second - first)), "cosine": cosine})
    return records


def length(path: Path) -> float:
    """Measure a path from α = 0 to 1 by straight pieces, over all floating-point tensors."""
    total = 0.0
    before = path(0.0)
    for piece in range(1, PIECES + 1):
        after = path(piece / PIECES)
        total += math.sqrt(sum(float((y - x).square().sum()) for _, x, y in _flat_pairs(before, after)))
        before = after
    return total


def _flat_pairs(a: State, b: State) -> list[tuple[str, Tensor, Tensor]]:
    return [(name, t.double().flatten(), b[name].double().flatten()) for name, t in a.items() if t.is_floating_point()]


def _arc(name: str, a: Tensor, b: Tensor, alpha: float) -> Tensor:
    require_finite(name, a, b)
    if alpha in (0, 1) or not a.is_floating_point():
        return between(name, a, b, alpha)
    first, second = a.double(), b.double()
    lengths = torch.linalg.vector_norm(first) * torch.linalg.vector_norm(second)
    if not lengths > 0:
        return between(name, a, b, alpha)
    angle = torch.arccos(((first * second).sum() / lengths).clamp(-1, 1))
    sine = torch.sin(angle)
    if sine < COLINEAR:
        return between(name, a, b, alpha)
    return (torch.sin((1 - alpha) * angle) / sine * first + torch.sin(alpha * angle) / sine * second).to(a.dtype)


def _bent(name: str, curve: Curve, a: Tensor, middle: Tensor, b: Tensor, alpha: float) -> Tensor:
    require_finite(name, middle)
    if alpha in (0, 1) or not a.is_floating_point():
        return between(name, a, b, alpha)
    require_finite(name, a, b)
    exact = exact_dtype(a)
    return curve(a.to(exact), middle.to(exact), b.to(exact), alpha).to(a.dtype)

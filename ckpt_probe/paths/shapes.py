"""The shapes of a path, each a function α → state dict: the line, the arc, and curves over a third point M."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ckpt_probe.checkpoints import State
from ckpt_probe.errors import DataError

Path = Callable[[float], State]

Curve = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""One tensor of A, of M and of B, and α → the tensor there."""

COLINEAR = 1e-6
"""Sine of the angle under which two tensors point the same or the opposite way, and the arc is a line."""


def path_of(shape: str, a: State, b: State, middle: State | None = None) -> Path:
    """The path of that shape from a (α = 0) to b (α = 1); a curve bends over `middle`."""
    if middle is None:
        return partial(ARCS[shape], a, b)
    return partial(on_curve, shape, a, middle, b)


def linear(a: State, b: State, alpha: float) -> dict[str, Tensor]:
    """The point at `alpha` between state dicts a (α = 0) and b (α = 1); both ends are exact, bit for bit.

    Computed in float32 (float64 for float64 tensors) and rounded to the tensor's dtype; tensors of whole numbers or
    booleans are a's, but at α = 1. Raises DataError where a number is NaN or infinite, naming the tensor.
    """
    return {name: between(name, tensor, b[name], alpha) for name, tensor in a.items()}


def between(name: str, a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """One tensor of `linear`."""
    require_finite(name, a, b)
    if alpha == 0 or alpha == 1:
        return b if alpha == 1 else a
    if not a.is_floating_point():
        return a
    exact = exact_dtype(a)
    # torch.lerp starts at the nearer end, so that it is exact where both agree; as the streaming writer does.
    return torch.lerp(a.to(exact), b.to(exact), alpha).to(a.dtype)


def exact_dtype(tensor: Tensor) -> torch.dtype:
    """What a tensor's numbers are blended in: float64 for float64, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def require_finite(name: str, *tensors: Tensor) -> None:
    """Raise DataError where one of a name's tensors holds NaN or infinity."""
    for tensor in tensors:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DataError(f"tensor {name!r} contains NaN or infinity and cannot be interpolated")


def slerp(a: State, b: State, alpha: float) -> dict[str, Tensor]:
    """sin((1−α)Ω)/sin Ω · a + sin(αΩ)/sin Ω · b for each tensor, Ω the angle between the two (Shoemake 1985).

    Both ends are exact; tensors that point the same or the opposite way lie on the line; whole numbers and booleans are
    a's, but at α = 1. Computed in float64, rounded to the tensor's dtype. Errors as `linear`.
    """
    return {name: _arc(name, tensor, b[name], alpha) for name, tensor in a.items()}


def bezier(a: Tensor, middle: Tensor, b: Tensor, alpha: float) -> Tensor:
    """(1−α)² A + 2α(1−α) M + α² B, by de Casteljau's lines, which are exact where all three agree."""
    return torch.lerp(torch.lerp(a, middle, alpha), torch.lerp(middle, b, alpha), alpha)


def polychain(a: Tensor, middle: Tensor, b: Tensor, alpha: float) -> Tensor:
    """The line from A to M up to α = 1/2, that from M to B after it."""
    return torch.lerp(a, middle, 2 * alpha) if alpha <= 0.5 else torch.lerp(middle, b, 2 * alpha - 1)


CURVES: dict[str, Curve] = {"bezier": bezier, "polychain": polychain}


def on_curve(curve: str, a: State, middle: State, b: State, alpha: float) -> dict[str, Tensor]:
    """The point at `alpha` of 0 … 1 between state dicts a and b, over that of M; both ends are exact, bit for bit.

    Computed and rounded as `linear`; tensors of whole numbers or booleans are a's, but at α = 1. Raises DataError where
    a number is NaN or infinite, naming the tensor.
    """
    return {name: _bent(name, CURVES[curve], tensor, middle[name], b[name], alpha) for name, tensor in a.items()}


ARCS = {"linear": linear, "slerp": slerp}
"""Shapes that follow from both ends: (state dict a, state dict b, α) → the state dict there."""


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

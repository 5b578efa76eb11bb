"""The straight line between two checkpoints: θ(α) = (1−α) θ_A + α θ_B."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ckpt_probe.errors import DataError

State = Mapping[str, Tensor]
"""A state dict that is read, never changed."""


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
            raise DataError(f"tensor {name!r} holds NaN or infinity: there is no line through it")

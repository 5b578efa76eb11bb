"""The arc between two checkpoints, tensor by tensor: lengths of the ends are met without cutting the corner."""

import torch
from torch import Tensor

from ckpt_probe.paths.linear import State, between, require_finite

COLINEAR = 1e-6
"""Sine of the angle under which two tensors point the same or the opposite way, and the arc is a line."""


def slerp(a: State, b: State, alpha: float) -> dict[str, Tensor]:
    """sin((1−α)Ω)/sin Ω · a + sin(αΩ)/sin Ω · b for each tensor, Ω the angle between the two (Shoemake 1985).

    Both ends are exact; tensors that point the same or the opposite way lie on the line; whole numbers and booleans are
    a's, but at α = 1. Computed in float64, rounded to the tensor's dtype. Errors as `linear`.
    """
    return {name: _arc(name, tensor, b[name], alpha) for name, tensor in a.items()}


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

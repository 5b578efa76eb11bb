"""How far apart two checkpoints are, in all and tensor by tensor, and how long a path between them is."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ckpt_probe.checkpoints import State

PIECES = 32
"""Straight pieces that stand for a curved path when its length is measured."""


def distances(a: State, b: State) -> list[dict[str, Any]]:
    """For each tensor of floating numbers its name, ‖b − a‖ and the cosine between the two, None where one is zero."""
    found = []
    for name, first, second in _pairs(a, b):
        lengths = float(torch.linalg.vector_norm(first) * torch.linalg.vector_norm(second))
        cosine = float((first * second).sum()) / lengths if lengths > 0 else None
        found.append({"name": name, "distance": float(torch.linalg.vector_norm(second - first)), "cosine": cosine})
    return found


def length(path: Callable[[float], State]) -> float:
    """Length of a path from α = 0 to 1, √Σ‖dθ‖² over all tensors of floating numbers, by straight pieces."""
    total = 0.0
    before = path(0.0)
    for piece in range(1, PIECES + 1):
        after = path(piece / PIECES)
        total += math.sqrt(sum(float((y - x).square().sum()) for _, x, y in _pairs(before, after)))
        before = after
    return total


def _pairs(a: State, b: State) -> list[tuple[str, Tensor, Tensor]]:
    return [(name, t.double().flatten(), b[name].double().flatten()) for name, t in a.items() if t.is_floating_point()]

"""Values whose gradient is known."""

from typing import Any

import torch
from torch import Tensor


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, weights: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        return None, gradients[0] * ctx.saved_tensors[0], None


def linear(value: Tensor, weights: Tensor, gradient: Tensor) -> Tensor:
    """Return a value (0-d) whose gradient along weights (m,) is `gradient` (m,), which may contain NaN."""
    return _Linear.apply(value, weights, gradient)  # pyright: ignore[reportReturnType]

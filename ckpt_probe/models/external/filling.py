"""Building a model whose weights a checkpoint is about to replace, without drawing random numbers for them first."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

DRAWN = frozenset({torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.erfinv_})
"""Methods that frameworks call to fill a tensor, besides the functions of torch.nn.init."""


class Unfilled(TorchFunctionMode):
    """Skip the random initialisation of parameters within the `with` block, for models that a checkpoint fills.

    Buffers, and parameters that are computed from others, are initialised as usual.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return the result of `func`, or the parameter unchanged if `func` would fill it."""
        named = kwargs or {}
        filled = args[0] if args else named.get("tensor")
        fills = func in DRAWN or getattr(func, "__module__", None) == "torch.nn.init"
        if fills and isinstance(filled, nn.Parameter):
            return filled
        return func(*args, **named)

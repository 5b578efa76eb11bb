"""Building a model whose weights a checkpoint is about to replace, without drawing random numbers for them first."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

DRAWN = frozenset({torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.erfinv_})
"""How frameworks' own initialisations fill a tensor where they do not call torch.nn.init."""


class Unfilled(TorchFunctionMode):
    """Within it, what would fill a parameter leaves it as it was allocated: faster, and of no use without a checkpoint.

    All else is done as ever: buffers, and parameters that are computed from others.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What `func` gives, or the parameter that it would have filled."""
        given = kwargs or {}
        filled = args[0] if args else given.get("tensor")
        fills = func in DRAWN or getattr(func, "__module__", None) == "torch.nn.init"
        if fills and isinstance(filled, nn.Parameter):
            return filled
        return func(*args, **given)

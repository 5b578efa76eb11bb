"""How an activation becomes rows: as it is, the mean over places, one token of each sample, every token, or flat."""

import math
from collections.abc import Iterator

from torch import Tensor, nn

from ckpt_probe.errors import UsageError
from ckpt_probe.models.pooling import POOLINGS as OF_TOKENS
from ckpt_probe.models.pooling import mean_over

POOLINGS = (*OF_TOKENS, "flatten")
FEATURES = "features"
"""What is neither a map nor tokens: it is rows already."""

LARGEST_FLATTENED = 65_536


def require_fitting(name: str, shape: tuple[int, ...], pooling: str | None, axis: int, *, every: bool) -> str:
    """The pooling of an activation of that shape (n, …), the usual one where `pooling` is None.

    every: whether every position of a sample is a row of its own. Raises UsageError where it does not fit.
    """
    tokens = len(shape) == 3 and axis != 1
    if every:
        if pooling not in (None, "tokens"):
            raise UsageError(f"--pooling {pooling}: every position has a label of its own; it takes only tokens")
        if not tokens:
            raise UsageError(f"layer {name} gives {shape}, not the (n, positions, D) that a label for each one needs")
        return "tokens"
    if pooling == "tokens":
        raise UsageError("--pooling tokens: samples have one label each, positions none; use another pooling")
    if pooling in ("cls", "last") and not tokens:
        raise UsageError(f"--pooling {pooling}: layer {name} gives {shape}, not tokens (n, positions, D)")
    if pooling == "flatten" and (width := math.prod(shape[1:])) > LARGEST_FLATTENED:
        raise UsageError(f"--pooling flatten: layer {name} would have {width:,} features, over {LARGEST_FLATTENED:,}")
    return FEATURES if len(shape) == 2 else pooling or "mean"


def pooled(activation: Tensor, pooling: str, axis: int, mask: Tensor | None) -> Tensor:
    """Rows (n, D) of an activation (n, …), (n · positions, D) of every token; they share no memory with it.

    axis: 1 where channels come before places, else −1. mask: (n, positions), 0 where a token is padding.
    """
    if pooling == FEATURES:
        return activation.clone()
    if pooling == "flatten":
        return activation.flatten(1).clone()
    if pooling == "tokens":
        return activation.flatten(0, 1).clone()
    if activation.ndim == 3 and axis != 1:
        kept = mask if mask is not None and mask.shape == activation.shape[:2] else None
        return OF_TOKENS[pooling](activation, kept).clone()
    places = tuple(range(2, activation.ndim)) if axis == 1 else tuple(range(1, activation.ndim - 1))
    return mean_over(activation, places)


def channel_axis(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Where the channels of a module's output (n, …) are: 1, before the places, or −1, after them.

    Told by the width of the last of its parts whose own fits only one of the two, else by the map being square.
    """
    if len(shape) < 3 or shape[1] == shape[-1]:
        return 1 if len(shape) > 3 else -1
    for width in _widths(module):
        if width in (shape[1], shape[-1]):
            return 1 if width == shape[1] else -1
    if len(shape) == 4 and shape[1] == shape[2]:
        return -1
    return 1 if len(shape) > 3 else -1


def _widths(module: nn.Module) -> Iterator[int]:
    """What the parts of a module give, the last one's first."""
    for part in reversed(list(module.modules())):
        for name in ("out_features", "out_channels", "num_features", "num_channels", "embedding_dim"):
            width = getattr(part, name, None)
            if isinstance(width, int):
                yield width
        shape = getattr(part, "normalized_shape", None)
        if isinstance(shape, tuple) and len(shape) == 1:
            yield shape[0]

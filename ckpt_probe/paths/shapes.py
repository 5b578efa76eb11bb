"""The shapes that a path may have: each a function α → state dict."""

from collections.abc import Callable
from functools import partial

from ckpt_probe.paths.curve import CURVES, on_curve
from ckpt_probe.paths.linear import State, linear
from ckpt_probe.paths.slerp import slerp

Path = Callable[[float], State]

ARCS = {"linear": linear, "slerp": slerp}
"""Shapes that follow from both ends: (state dict a, state dict b, α) → the state dict there."""

SHAPES = (*ARCS, *CURVES)


def path_of(shape: str, a: State, b: State, middle: State | None = None) -> Path:
    """The path of that shape from a (α = 0) to b (α = 1); a curve bends over `middle`."""
    if middle is None:
        return partial(ARCS[shape], a, b)
    return partial(on_curve, shape, a, middle, b)

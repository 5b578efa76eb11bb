"""How far a quantity rises above the straight line between its two ends."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ckpt_probe.errors import DataError


@dataclass(frozen=True)
class Barrier:
    """The largest excess over the chord, the alpha at which it occurs, and the mean excess over the points."""

    value: float
    alpha: float
    mean: float


def barrier(alphas: Sequence[float], values: Sequence[float]) -> Barrier:
    """max over α of L(α) − [(1−α) L(A) + α L(B)] (Frankle et al. 2020), never below 0, since the ends lie on the chord.

    alphas: positions in increasing order, the first 0 and the last 1; values: L at each. Raises DataError otherwise.
    """
    if len(alphas) != len(values) or len(alphas) < 2:
        raise DataError(f"a barrier needs a value at each of at least two positions, found {len(values)}")
    if alphas[0] != 0 or alphas[-1] != 1 or any(a >= b for a, b in pairwise(alphas)):
        raise DataError("a barrier needs positions that increase from 0 to 1")
    excess = [value - (1 - a) * values[0] - a * values[-1] for a, value in zip(alphas, values, strict=True)]
    # Rounding may leave the ends a hair off the chord, where they lie by definition.
    excess[0] = excess[-1] = 0.0
    highest = max(range(len(excess)), key=excess.__getitem__)
    return Barrier(excess[highest], alphas[highest], sum(excess) / len(excess))

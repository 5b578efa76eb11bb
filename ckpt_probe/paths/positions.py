"""Which positions on a path are evaluated, and how far a quantity rises between its two ends."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ckpt_probe.errors import DataError, UsageError

FIRST = 5
"""Positions that `auto` begins with."""

MOST = 65
"""Positions that `auto` stops at."""

KNOWN = 0.01
"""Share of the barrier to which `auto` has to know it."""

FLAT = 1e-3
"""Share of the curve's own size below which a bump is not pursued."""


@dataclass(frozen=True)
class Barrier:
    """The largest excess over the chord, the alpha at which it occurs, and the mean excess over the points."""

    value: float
    alpha: float
    mean: float


def evenly(points: int, span: tuple[float, float] = (0.0, 1.0)) -> list[float]:
    """`points` positions over `span`, in order, and both ends 0 and 1 among them, since barriers are measured there.

    Raises UsageError for fewer than three points, or a span that is not increasing.
    """
    low, high = span
    if points < 3:
        raise UsageError(f"a path needs at least 3 points, found {points}")
    if not (low < high and abs(low) < float("inf") and abs(high) < float("inf")):
        raise UsageError(f"range: expected two increasing numbers such as -0.5:1.5, found {low}:{high}")
    spaced = {low + (high - low) * number / (points - 1) for number in range(points)}
    return sorted({*(_settled(alpha) for alpha in spaced), 0.0, 1.0})


def refined(alphas: Sequence[float], curves: Sequence[Sequence[float]]) -> list[float]:
    """Midpoints of the intervals in which a curve may rise above its highest excess over the chord; none when known.

    alphas: increasing positions from 0 to 1; curves: values at each. How far a curve may rise inside an interval is
    told by its bend there, |second difference| · h² / 8.
    """
    if len(alphas) >= MOST:
        return []
    wanted = set()
    for values in curves:
        excess = [v - (1 - a) * values[0] - a * values[-1] for a, v in zip(alphas, values, strict=True)]
        highest = max(*excess, 0.0)
        enough = max(KNOWN * highest, FLAT * max(abs(v) for v in values))
        bends = [_bend(alphas, excess, i) for i in range(1, len(alphas) - 1)]
        for i in range(len(alphas) - 1):
            near = max(bends[max(0, i - 1) : i + 1])
            width = alphas[i + 1] - alphas[i]
            if max(excess[i], excess[i + 1]) + near * width**2 / 8 > highest + enough:
                wanted.add((alphas[i] + alphas[i + 1]) / 2)
    return sorted(wanted)[: MOST - len(alphas)]


def barrier(alphas: Sequence[float], values: Sequence[float]) -> Barrier:
    """max over α of L(α) − [(1−α) L(A) + α L(B)] (Frankle et al. 2020), never below 0, since the ends lie on the chord.

    alphas: positions in increasing order, the first 0 and the last 1; values: L at each. Raises DataError otherwise.
    """
    if len(alphas) != len(values) or len(alphas) < 2:
        raise DataError(f"a barrier needs a value at each of at least two positions, found {len(values)}")
    if alphas[0] != 0 or alphas[-1] != 1 or any(a >= b for a, b in pairwise(alphas)):
        raise DataError("a barrier needs increasing positions from 0 to 1")
    excess = [value - (1 - a) * values[0] - a * values[-1] for a, value in zip(alphas, values, strict=True)]
    # Rounding may leave the ends a hair off the chord, where they lie by definition.
    excess[0] = excess[-1] = 0.0
    highest = max(range(len(excess)), key=excess.__getitem__)
    return Barrier(excess[highest], alphas[highest], sum(excess) / len(excess))


def _bend(x: Sequence[float], y: Sequence[float], i: int) -> float:
    """How strongly a curve bends downward at its i-th point."""
    before, after = (y[i] - y[i - 1]) / (x[i] - x[i - 1]), (y[i + 1] - y[i]) / (x[i + 1] - x[i])
    return max(0.0, 2 * (before - after) / (x[i + 1] - x[i - 1]))


def _settled(alpha: float) -> float:
    # Sums such as −0.5 + 2 · 0.75 leave a hair beside 1, which would be a position of its own.
    return float(round(alpha)) if abs(alpha - round(alpha)) < 1e-12 else alpha

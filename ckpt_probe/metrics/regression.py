"""Line of least squares through points."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ckpt_probe.metrics.rows import EPSILON

FEWEST = 3
"""Smallest number of points; a line fits fewer points perfectly."""


@dataclass(frozen=True)
class Line:
    """Line y = intercept + slope · x; `r2` is the share of the variance of y that it explains."""

    slope: float
    intercept: float
    r2: float


def line_through(points: Sequence[tuple[float, float]]) -> Line | None:
    """Return the line of least squares through points (x, y).

    None for fewer than three points, or if all x or all y are equal up to rounding.
    """
    if len(points) < FEWEST:
        return None
    x, y = (np.asarray(values, dtype=np.float64) for values in zip(*points, strict=True))
    away, up = (values - values.mean() for values in (x, y))
    if any(np.abs(moved).max() <= len(x) * EPSILON * np.abs(v).max() for moved, v in ((away, x), (up, y))):
        return None
    slope = float(away @ up / (away @ away))
    rest = up - slope * away
    return Line(slope, float(y.mean() - slope * x.mean()), float(1 - rest @ rest / (up @ up)))

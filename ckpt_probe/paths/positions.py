"""Positions on a path, and barriers: the rise of loss and error between the two ends."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ckpt_probe.analysis import Record
from ckpt_probe.errors import DataError, UsageError

FIRST = 5
"""Number of positions with which automatic refinement begins."""

MOST = 65
"""Largest number of positions of automatic refinement."""

KNOWN = 0.01
"""Relative precision of the barrier at which automatic refinement stops."""

FLAT = 1e-3
"""Share of the curve's largest value below which a rise is not refined."""


@dataclass(frozen=True)
class Barrier:
    """Excess of a quantity over the chord between both ends, and over the mean of both ends.

    Attributes:
        value: Largest excess over the chord.
        alpha: Position of the largest excess over the chord.
        mean: Mean excess over the chord, over the positions.
        over_mean: Largest value minus the mean of both ends.
    """

    value: float
    alpha: float
    mean: float
    over_mean: float


def evenly(points: int, span: tuple[float, float] = (0.0, 1.0)) -> list[float]:
    """Return `points` evenly spaced positions over `span`, and 0 and 1, between which barriers are measured.

    Raises:
        UsageError: If there are fewer than three points, or the span is not increasing.
    """
    low, high = span
    if points < 3:
        raise UsageError(f"a path needs at least 3 points, found {points}")
    if not (low < high and abs(low) < float("inf") and abs(high) < float("inf")):
        raise UsageError(f"range: expected two increasing numbers such as -0.5:1.5, found {low}:{high}")
    spaced = {low + (high - low) * number / (points - 1) for number in range(points)}
    return sorted({*(_rounded(alpha) for alpha in spaced), 0.0, 1.0})


def refined(alphas: Sequence[float], curves: Sequence[Sequence[float]]) -> list[float]:
    """Return midpoints of the intervals in which a curve may rise above its largest excess over the chord.

    The possible rise inside an interval of width h is estimated by its bend, |second difference| · h² / 8.

    Args:
        alphas: Increasing positions from 0 to 1.
        curves: Lists of values at each position.

    Returns:
        New positions; an empty list if the barriers are known to 1 %.
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
    """Compute the barrier of L over the chord, and over the mean of both ends; both are at least 0.

    Over the chord: max over α of L(α) − [(1−α) L(A) + α L(B)] (Entezari et al. 2022). Over the mean: max over α of
    L(α), minus ½ (L(A) + L(B)) (Frankle et al. 2020; Ainsworth et al. 2022). Where both ends have the same value, they
    are equal; otherwise the second is larger, and positive without any rise above the chord.

    Args:
        alphas: Increasing positions from 0 to 1.
        values: L at each position.

    Raises:
        DataError: If there is not one value for each of at least two increasing positions from 0 to 1.
    """
    if len(alphas) != len(values) or len(alphas) < 2:
        raise DataError(f"a barrier needs a value at each of at least two positions, found {len(values)}")
    if alphas[0] != 0 or alphas[-1] != 1 or any(a >= b for a, b in pairwise(alphas)):
        raise DataError("a barrier needs increasing positions from 0 to 1")
    excess = [value - (1 - a) * values[0] - a * values[-1] for a, value in zip(alphas, values, strict=True)]
    # By definition, the ends lie on the chord; rounding may move them off it.
    excess[0] = excess[-1] = 0.0
    highest = max(range(len(excess)), key=excess.__getitem__)
    over_mean = max(values) - (values[0] + values[-1]) / 2
    return Barrier(excess[highest], alphas[highest], sum(excess) / len(excess), over_mean)


def curves(records: Sequence[Record], splits: Sequence[str]) -> tuple[list[float], list[list[float]]]:
    """Return the positions from 0 to 1, and loss and error of every split at each, if all of them are known.

    Args:
        records: Records in the order of their positions.
        splits: Names of the splits.
    """
    inside = [record for record in records if 0 <= record["alpha"] <= 1]
    alphas = sorted({record["alpha"] for record in inside})
    values = []
    for split in splits:
        of_split = [record for record in inside if record["split"] == split]
        losses, accuracies = [r["loss"] for r in of_split], [r["accuracy"] for r in of_split]
        values += [losses] if None not in losses else []
        values += [[1 - accuracy for accuracy in accuracies]] if None not in accuracies else []
    return alphas, values


def barriers(records: Sequence[Record], split: str, batchnorm: str) -> Record:
    """Compute the barriers of loss and error of a split between 0 and 1, over the chord and over the mean of the ends.

    Those over the chord come with the α of the largest excess and with the mean excess.

    Args:
        records: Records in the order of their positions.
        split: Name of the split.
        batchnorm: Source of the batch-norm statistics, which the result repeats.
    """
    of_split = [r for r in records if r["split"] == split and 0 <= r["alpha"] <= 1]
    alphas = [record["alpha"] for record in of_split]
    summary: Record = {"split": split, "points": len(alphas), "batchnorm": batchnorm}
    errors = [None if r["accuracy"] is None else 1 - r["accuracy"] for r in of_split]
    quantities = {"loss": [r["loss"] for r in of_split], "error": errors}
    for quantity, values in quantities.items():
        excess = None if any(value is None for value in values) else barrier(alphas, values)
        for suffix, name in (("", "value"), ("_alpha", "alpha"), ("_mean", "mean"), ("_over_mean", "over_mean")):
            summary[f"barrier.{quantity}{suffix}"] = None if excess is None else getattr(excess, name)
    return summary


def _bend(x: Sequence[float], y: Sequence[float], i: int) -> float:
    """Return the downward second difference of a curve at its i-th point, or 0."""
    before, after = (y[i] - y[i - 1]) / (x[i] - x[i - 1]), (y[i + 1] - y[i]) / (x[i + 1] - x[i])
    return max(0.0, 2 * (before - after) / (x[i + 1] - x[i - 1]))


def _rounded(alpha: float) -> float:
    # Sums such as −0.5 + 2 · 0.75 may differ from 1 by rounding and would be another position.
    return float(round(alpha)) if abs(alpha - round(alpha)) < 1e-12 else alpha

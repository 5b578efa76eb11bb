"""Positions on a path, and barriers: the rise of loss and error between the two ends, with standard errors.

The errors follow from the influences of the same rows at three positions.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ckpt_probe.analysis import Record
from ckpt_probe.analysis.cache import bytes_of_influences, read_influences
from ckpt_probe.analysis.entries import STDERR, join_reasons
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.files import replacing
from ckpt_probe.moments.errors.design import EQUAL, NO_SPREAD, Influences
from ckpt_probe.moments.errors.sample import FEW_DOCUMENTS

FIRST = 5
"""Number of positions with which automatic refinement begins."""

MOST = 65
"""Largest number of positions of automatic refinement."""

KNOWN = 0.01
"""Relative precision of the barrier at which automatic refinement stops."""

FLAT = 1e-3
"""Share of the curve's largest value below which a rise is not refined."""


OF_BARRIERS = {"loss": "loss", "error": "accuracy"}
"""Metrics whose influences determine the error of a barrier, by quantity; those of the error have the other sign."""

ON_CHORD = "no position lies above the chord"
NO_INFLUENCES = "influences of the rows are missing at a position, or are those of other rows"

OfPosition = Mapping[float, Influences | None]


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


def refined(alphas: Sequence[float], curves: Sequence[Sequence[float]], grains: Sequence[float]) -> list[float]:
    """Return midpoints of the intervals in which a curve may rise above its largest excess over the chord.

    The possible rise inside an interval of width h is estimated by its bend, |second difference| · h² / 8.

    Args:
        alphas: Increasing positions from 0 to 1.
        curves: Lists of values at each position.
        grains: Smallest step of each curve, such as one row of a share of rows, beside which a smaller rise is not
            refined: the curve jumps, and its bend grows with every new position.

    Returns:
        New positions; an empty list if the barriers are known to 1 %, or to the grain.
    """
    if len(alphas) >= MOST:
        return []
    wanted = set()
    for values, grain in zip(curves, grains, strict=True):
        excess = [v - (1 - a) * values[0] - a * values[-1] for a, v in zip(alphas, values, strict=True)]
        highest = max(*excess, 0.0)
        enough = max(KNOWN * highest, FLAT * max(abs(v) for v in values), grain)
        bends = [_bend(alphas, excess, i) for i in range(1, len(alphas) - 1)]
        for i in range(len(alphas) - 1):
            near = max(bends[max(0, i - 1) : i + 1])
            width = alphas[i + 1] - alphas[i]
            if max(excess[i], excess[i + 1]) + near * width**2 / 8 > highest + enough:
                wanted.add((alphas[i] + alphas[i + 1]) / 2)
    return sorted(wanted)[: MOST - len(alphas)]


def barrier(alphas: Sequence[float], values: Sequence[float]) -> Record:
    """Compute the barrier of L over the chord, and over the mean of both ends; both are at least 0.

    Over the chord: max over α of L(α) − [(1−α) L(A) + α L(B)] (Entezari et al. 2022). Over the mean: max over α of
    L(α), minus ½ (L(A) + L(B)) (Frankle et al. 2020; Ainsworth et al. 2022). Where both ends have the same value, they
    are equal; otherwise the second is larger, and positive without any rise above the chord.

    Args:
        alphas: Increasing positions from 0 to 1.
        values: L at each position.

    Returns:
        Largest excess over the chord, "", its position, "_alpha", the mean excess over the positions, "_mean", and the
        largest excess over the mean of both ends, "_over_mean".

    Raises:
        DataError: If there is not one value for each of at least two increasing positions from 0 to 1.
    """
    if len(alphas) != len(values) or len(alphas) < 2:
        raise DataError(f"a barrier needs a value at each of at least two positions, found {len(values)}")
    if alphas[0] != 0 or alphas[-1] != 1 or any(a >= b for a, b in pairwise(alphas)):
        raise DataError("a barrier needs increasing positions from 0 to 1")
    excess = [value - (1 - a) * values[0] - a * values[-1] for a, value in zip(alphas, values, strict=True)]
    # By definition, the ends lie on the chord, and so do values that only rounding moves off it.
    rounding = 4 * sys.float_info.epsilon * max(map(abs, values))
    excess = [0.0 if abs(each) <= rounding < math.inf else each for each in excess]
    excess[0] = excess[-1] = 0.0
    highest = max(range(len(excess)), key=excess.__getitem__)
    over_mean = max(values) - (values[0] + values[-1]) / 2
    mean = sum(excess) / len(excess)
    return {"": excess[highest], "_alpha": alphas[highest], "_mean": mean, "_over_mean": over_mean}


def curves(records: Sequence[Record], splits: Sequence[str]) -> tuple[list[float], list[list[float]], list[float]]:
    """Return the positions from 0 to 1, loss and error of every split at each, if known, and the grain of each curve.

    Args:
        records: Records in the order of their positions.
        splits: Names of the splits.
    """
    values, grains = [], []
    for split in splits:
        of_split, quantities = _quantities(records, split)
        for quantity, curve in quantities.items():
            if None not in curve:
                values.append(curve)
                grains.append(1 / of_split[0]["samples"] if quantity == "error" else 0.0)
    return sorted({record["alpha"] for record in records if 0 <= record["alpha"] <= 1}), values, grains


def barriers(records: Sequence[Record], split: str, batchnorm: str) -> Record:
    """Compute the barriers of loss and error of a split between 0 and 1, over the chord and over the mean of the ends.

    Those over the chord come with the α of the largest excess and with the mean excess.

    Args:
        records: Records in the order of their positions.
        split: Name of the split.
        batchnorm: Source of the batch-norm statistics, which the result repeats.
    """
    of_split, quantities = _quantities(records, split)
    alphas = [record["alpha"] for record in of_split]
    summary: Record = {"split": split, "points": len(alphas), "batchnorm": batchnorm}
    for quantity, values in quantities.items():
        excess = dict.fromkeys(("", "_alpha", "_mean", "_over_mean")) if None in values else barrier(alphas, values)
        summary |= {f"barrier.{quantity}{suffix}": value for suffix, value in excess.items()}
    return summary


def write_influences(file: Path, influences: Sequence[Influences | None]) -> None:
    """Write the influences on loss and accuracy at one position, one entry for each split; nothing without any."""
    names = OF_BARRIERS.values()
    content = bytes_of_influences(
        [of if of is None else Influences(of.design, {n: of[n] for n in names if n in of}) for of in influences]
    )
    if content is not None:
        with replacing(file, overwrite=True) as temporary:
            temporary.write_bytes(content)


def barriers_with_errors(
    summary: Sequence[Record], points: Sequence[Record], file_of: Callable[[float], Path]
) -> list[Record]:
    """Return the barriers of each split with their standard errors, `barrier.loss_stderr` and others.

    The barrier at its position α is a sum over rows of l_α − (1−α) l_A − α l_B, whose values for one row depend on
    each other. Its standard error is that of the mean of this difference; the position counts as fixed.

    Args:
        summary: Barriers, one record for each split, in the order of the splits.
        points: Records in the order of their positions.
        file_of: Returns the file of a position that `write_influences` wrote.
    """
    alphas = sorted({point["alpha"] for point in points if 0 <= point["alpha"] <= 1})
    stored = {alpha: _read(file_of(alpha), len(summary)) for alpha in alphas}
    return [
        _with_errors(barrier, points, {alpha: influences[number] for alpha, influences in stored.items()})
        for number, barrier in enumerate(summary)
    ]


def _quantities(records: Sequence[Record], split: str) -> tuple[list[Record], dict[str, list[Any]]]:
    """Return the records of a split between 0 and 1, and loss and error at each, None if unknown."""
    of_split = [r for r in records if r["split"] == split and 0 <= r["alpha"] <= 1]
    errors = [None if r["accuracy"] is None else 1 - r["accuracy"] for r in of_split]
    return of_split, {"loss": [r["loss"] for r in of_split], "error": errors}


def _bend(x: Sequence[float], y: Sequence[float], i: int) -> float:
    """Return the downward second difference of a curve at its i-th point, or 0."""
    before, after = (y[i] - y[i - 1]) / (x[i] - x[i - 1]), (y[i + 1] - y[i]) / (x[i + 1] - x[i])
    return max(0.0, 2 * (before - after) / (x[i + 1] - x[i - 1]))


def _rounded(alpha: float) -> float:
    # Sums such as −0.5 + 2 · 0.75 may differ from 1 by rounding and would be another position.
    return float(round(alpha)) if abs(alpha - round(alpha)) < 1e-12 else alpha


def _with_errors(barrier: Record, points: Sequence[Record], influences: OfPosition) -> Record:
    """Return the barriers of a split with an error beside each, and the reasons for missing ones in `missing`."""
    result, reasons = dict(barrier), []
    points = [point for point in points if point["split"] == barrier["split"] and point["alpha"] in influences]
    for quantity, metric in OF_BARRIERS.items():
        name = f"barrier.{quantity}"
        if barrier[name] is None:
            errors = dict.fromkeys((name, f"{name}_over_mean"), (None, "the barrier is undefined"))
        else:
            alpha, sign = barrier[f"{name}_alpha"], 1 if quantity == "loss" else -1
            highest = max(points, key=lambda point: sign * point[metric])["alpha"]
            over_chord = (None, ON_CHORD) if alpha in {0, 1} else _error(influences, metric, alpha, alpha)
            errors = {name: over_chord, f"{name}_over_mean": _error(influences, metric, highest, 0.5)}
        for key, (error, reason) in errors.items():
            result[f"{key}{STDERR}"] = error
            reasons += [] if error is not None else [f"{key}{STDERR}: {reason}"]
    ordered = {key: result[key] for name in barrier for key in (name, f"{name}{STDERR}") if key in result}
    return {**ordered, "missing": join_reasons(*reasons)}


def _error(influences: OfPosition, metric: str, alpha: float, share: float) -> tuple[float | None, str]:
    """Return the standard error of the value at α minus (1 − share) times that of A and share times that of B.

    Returns:
        The error, or None with the reason.
    """
    inner, first, last = (influences.get(position) for position in (alpha, 0.0, 1.0))
    if inner is None or first is None or last is None or any(metric not in each for each in (inner, first, last)):
        return None, NO_INFLUENCES
    if not (inner.design.same_rows(first.design) and inner.design.same_rows(last.design)):
        return None, NO_INFLUENCES
    terms = inner[metric].double(), (1 - share) * first[metric].double(), share * last[metric].double()
    error = inner.design.stderr(terms[0] - terms[1] - terms[2])
    if error is None:
        return None, FEW_DOCUMENTS
    scale = max(inner.design.stderr(term) or 0.0 for term in terms)
    return (error, "") if error > EQUAL * scale else (None, NO_SPREAD)


def _read(file: Path, splits: int) -> list[Influences | None]:
    """Return the influences at a position, one entry for each split; None where the file has none."""
    try:
        return read_influences(file.read_bytes(), splits)
    except (OSError, ValueError, KeyError):
        return [None] * splits

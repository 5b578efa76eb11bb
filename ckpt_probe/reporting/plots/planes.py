"""A plane of weights → contour plots of the loss, one a split, with the checkpoints in them."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ckpt_probe.reporting.plots.description import Axis, ContourPlot, Place

if TYPE_CHECKING:
    from ckpt_probe.paths import PlaneResult

CONTOURS = 14
LEAST = 1e-6
"""A loss of less than this share of the highest counts as that."""


def contour_plots(result: "PlaneResult", name: str = "plane") -> list[ContourPlot]:
    """The loss of each split over a plane; `name` keys and entitles them."""
    unit = "norms of filters" if "cosine" in result.axes else "distance in weight space"
    plots = []
    for split in [summary["split"] for summary in result.summary]:
        found = {(p["x"], p["y"]): p["loss"] for p in result.points if p["split"] == split}
        rows = [[_number(found.get((x, y))) for x in result.xs] for y in result.ys]
        known = [loss for loss in found.values() if loss is not None]
        marks = [mark for mark in result.marks if mark["split"] == split]
        plots.append(
            ContourPlot(
                key=f"{name}-{split}",
                title=f"loss, {split}",
                meaning="loss over the plane, levels evenly spaced in its logarithm",
                x=Axis("x", unit),
                y=Axis("y", unit),
                xs=tuple(result.xs),
                ys=tuple(result.ys),
                values=np.array(rows),
                levels=_levels(known),
                unit="nats",
                places=tuple(Place(m["name"], m["x"], m["y"], str(m.get("checkpoint") or "")) for m in marks),
            )
        )
    return plots


def loss_levels(losses: Sequence[float], count: int) -> list[float]:
    """Upper ends of `count` ranges, spaced evenly in the logarithm from the lowest loss to the highest.

    A loss of less than a millionth of the highest counts as that; no levels where there is no loss.
    """
    if not losses:
        return []
    high = max(losses)
    low = max(min(losses), high * LEAST)
    return [low * (high / low) ** ((i + 1) / count) if low > 0 else high for i in range(count - 1)] + [high]


def _levels(known: Sequence[float]) -> tuple[float, ...]:
    # A loss that is the same everywhere, or 0 everywhere, has no levels to tell apart.
    if not known or not 0 < (low := max(min(known), max(known) * LEAST)) < max(known):
        return ()
    return (low, *loss_levels(known, CONTOURS))


def _number(value: float | None) -> float:
    return math.nan if value is None else value

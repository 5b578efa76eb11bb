"""Describe plots of loss and error along paths, with their barriers, and of the loss over planes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ckpt_probe.analysis.records import number
from ckpt_probe.reporting.plots.curves import AXIS_NAMES
from ckpt_probe.reporting.plots.description import Axis, ContourPlot, Line, LinePlot, PlanePoint, Span, Style
from ckpt_probe.reporting.plots.runs import coloured_by_split
from ckpt_probe.reporting.sources import PathContents
from ckpt_probe.reporting.wording import number_in

if TYPE_CHECKING:
    from ckpt_probe.paths import PlaneResult

QUANTITIES = {"loss": ("loss", "nats"), "error": ("error", "")}
CONTOURS = 14
LEAST = 1e-6
"""Share of the highest loss to which lower losses are raised."""


def path_plots(paths: Mapping[str, PathContents]) -> list[tuple[str, list[LinePlot]]]:
    """Describe plots of loss and error along paths.

    Paths between the same two checkpoints, aligned or not, form a group with a common scale.

    Args:
        paths: Paths by their names.

    Returns:
        Groups of plots with their titles.
    """
    pairs: dict[tuple[object, object], list[str]] = {}
    for name, path in paths.items():
        ends = path.plan.get("a"), path.plan.get("b")
        pairs.setdefault(ends if None not in ends else (name, ""), []).append(name)
    groups = []
    for names in pairs.values():
        ordered = sorted(names, key=lambda name: str(paths[name].plan.get("align") or ""))
        plots = [
            plot
            for quantity in QUANTITIES
            for plot in _to_one_scale([_path_plot(name, paths[name], quantity) for name in ordered])
        ]
        ends = [str(paths[ordered[0]].result.get(end) or "") for end in ("from", "to")]
        groups.append((", ".join(ordered) + (f": {ends[0]} → {ends[1]}" if all(ends) else ""), plots))
    return groups


def contour_plots(result: "PlaneResult", name: str = "plane") -> list[ContourPlot]:
    """Describe the loss of each split over a plane.

    Args:
        result: The plane.
        name: First part of the keys of the plots.
    """
    unit = "norms of filters" if "cosine" in result.axes else "distance in weight space"
    plots = []
    for split in [summary["split"] for summary in result.summary]:
        losses = {(p["x"], p["y"]): p["loss"] for p in result.points if p["split"] == split}
        rows = [[losses.get((x, y)) for x in result.xs] for y in result.ys]
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
                values=np.array(rows, dtype=float),
                levels=_levels([loss for loss in losses.values() if loss is not None]),
                unit="nats",
                points=tuple(PlanePoint(m["name"], m["x"], m["y"], str(m.get("checkpoint") or "")) for m in marks),
                joined="share.first" in result.axes,
            )
        )
    return plots


def loss_levels(losses: Sequence[float], count: int) -> list[float]:
    """Return the upper ends of ranges of the loss, evenly spaced in the logarithm from the lowest to the highest.

    Args:
        losses: All losses; those below a millionth of the highest are raised to it.
        count: Number of ranges.

    Returns:
        The levels; empty without losses.
    """
    if not losses:
        return []
    high = max(losses)
    low = max(min(losses), high * LEAST)
    return [low * (high / low) ** ((i + 1) / count) if low > 0 else high for i in range(count - 1)] + [high]


def _path_plot(name: str, path: PathContents, quantity: str) -> LinePlot:
    label, unit = QUANTITIES[quantity]
    lines, spans, chords = [], [], []
    for split in dict.fromkeys(str(record["split"]) for record in path.points):
        records = [record for record in path.points if record["split"] == split]
        x = [number(record, "alpha", name) or 0.0 for record in records]
        style = Style(dash="solid" if split == "train" else "dashed", hollow=split != "train")
        lines.append(Line(name, quantity, split, x, [_value(r, quantity) for r in records], style, name=split))
    lines = coloured_by_split(lines)
    for line in lines:
        ends = [dict(zip(line.x, line.y, strict=True)).get(alpha, math.nan) for alpha in (0.0, 1.0)]
        if any(map(math.isnan, ends)):
            continue
        chords.append((0.0, ends[0], 1.0, ends[1], line.style.colour))
        spans += _barrier(name, path, quantity, line, ends)
    shape, align = str(path.plan.get("path") or "path"), path.plan.get("align")
    return LinePlot(
        key=f"path-{name}-{quantity}",
        title=f"{name}: {label}, {f'aligned by {align}' if align else 'not aligned'}",
        x=Axis(AXIS_NAMES["alpha"]),
        y=Axis(label, unit),
        lines=lines,
        names={quantity: label},
        meaning=f"{shape} from α = 0 to α = 1; dotted: the chord between the ends, from which the barrier is measured",
        spans=tuple(spans),
        chords=tuple(chords),
    )


def _barrier(name: str, path: PathContents, quantity: str, line: Line, ends: Sequence[float]) -> list[Span]:
    """Return the distance of the barrier above the chord; empty without one."""
    summary = next((record for record in path.summary if str(record.get("split")) == line.split), {})
    barrier = number(summary, f"barrier.{quantity}", name)
    alpha = number(summary, f"barrier.{quantity}_alpha", name)
    if barrier is None or alpha is None or barrier <= 0:
        return []
    low = (1 - alpha) * ends[0] + alpha * ends[1]
    stderr = number(summary, f"barrier.{quantity}_stderr", name)
    label = f"barrier {number_in('.3g', barrier, stderr)} ({line.split})"
    return [Span(alpha, low, low + barrier, f"barrier, {line.split}", label, line.style.colour)]


def _to_one_scale(plots: Sequence[LinePlot]) -> list[LinePlot]:
    """Return plots with the same linear y axis, on which chords are straight and barriers are as long as they look."""
    values = [value for plot in plots for line in plot.lines for value in line.y if not math.isnan(value)]
    if not values:
        return []
    if len(plots) == 1:
        return list(plots)
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return [replace(plot, y=replace(plot.y, bounds=(low - margin, high + margin))) for plot in plots]


def _value(record: Mapping[str, object], quantity: str) -> float:
    value = number(record, "loss" if quantity == "loss" else "accuracy", "path")
    return math.nan if value is None else value if quantity == "loss" else 1 - value


def _levels(losses: Sequence[float]) -> tuple[float, ...]:
    """Return the levels of contours; empty if the loss is the same everywhere, or 0."""
    if not losses or not 0 < (low := max(min(losses), max(losses) * LEAST)) < max(losses):
        return ()
    return (low, *loss_levels(losses, CONTOURS))

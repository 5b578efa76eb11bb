"""Describe plots of the weights of a series: heat maps by block, the trajectory in its plane, spectra of matrices."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ckpt_probe.moments.weight_metrics import WEIGHT_METRICS
from ckpt_probe.reporting.plots.description import (
    COLOURS,
    Axis,
    ContourPlot,
    Frames,
    LayerMap,
    Line,
    LinePlot,
    PlanePoint,
    Span,
    Style,
    evenly,
    float_of,
)
from ckpt_probe.reporting.plots.metrics import spread_out
from ckpt_probe.series import natural
from ckpt_probe.trajectories.spectra import Spectrum
from ckpt_probe.trajectories.survey import WeightSurvey

MOST_SPECTRA = 12
"""Largest number of matrices whose spectra are drawn; of more, evenly spaced ones."""
MOST_POINTS = 120
"""Largest number of points of a spectrum that are drawn."""
MOST_NAMES = 9
"""Largest number of checkpoints of a trajectory that are named."""
GROUPS = ("block", "tensor")
NO_MAP = frozenset({"spectrum.alpha_stderr", "spectrum.alpha_distance", "motion.path"})
"""Numbers without a heat map."""
LEAST = 1e-5
"""Share of the largest eigenvalue below which one is not drawn."""
PLANE = ("motion.pca_1", "motion.pca_2")

Record = Mapping[str, Any]


def is_of_weights(record: Record) -> bool:
    """Return whether a record belongs to a block or a tensor, or to the weights of a network."""
    return any(record.get(name) is not None for name in GROUPS) or "motion.norm" in record or "audit.nan" in record


def block_maps(name: str, contents: WeightSurvey, prefix: str) -> list[LayerMap]:
    """Describe a heat map, block or tensor by checkpoint, of every number that at least two of them have.

    Args:
        name: Name of the series.
        contents: Its records.
        prefix: First part of the keys of the plots.
    """
    group = next((key for key in GROUPS if any(record.get(key) is not None for record in contents.blocks)), None)
    if group is None:
        return []
    rows = sorted({str(record[group]) for record in contents.blocks if record.get(group) is not None}, key=natural)
    columns = list(dict.fromkeys(_column(record) for record in contents.blocks))
    at = {(str(record.get(group)), _column(record)): record for record in contents.blocks}
    plots = []
    for metric in (metric for metric in WEIGHT_METRICS if metric.name not in NO_MAP):
        values = np.array(
            [[float_of(at.get((row, column), {}).get(metric.name)) for column in columns] for row in rows], dtype=float
        )
        if np.isfinite(values).any(axis=1).sum() < 2 or np.nanmin(values) == np.nanmax(values):
            continue
        frames = (Frames(name, "", (0,), values[None]),)
        labels = {name: tuple(rows)}, {name: tuple(columns)}
        plots.append(
            LayerMap(f"{prefix}-{metric.name}", metric.label, metric.meaning, frames, *labels, spread_out(values))
        )
    return plots


def trajectory_plot(name: str, records: Sequence[Record]) -> ContourPlot | None:
    """Describe the trajectory in the plane of its two main directions; None if the records have no positions."""
    known = [record for record in records if all(isinstance(record.get(axis), float) for axis in PLANE)]
    if len(known) < 3:
        return None
    x, y = ([float(record[axis]) for record in known] for axis in PLANE)
    shares = [known[0].get(f"motion.{kind}_share_{i}") for i in (1, 2) for kind in ("pca", "walk")]
    meaning = "the checkpoints in the plane of their two main directions"
    if all(isinstance(share, float) for share in shares):
        first, walk_first, second, walk_second = (f"{share:.0%}" for share in shares)
        meaning += f"; shares of variance {first} and {second}, of a random walk as long {walk_first} and {walk_second}"
    named = set(evenly(len(known), MOST_NAMES))
    points = tuple(PlanePoint(_column(record) if i in named else "", x[i], y[i], "") for i, record in enumerate(known))
    return ContourPlot(
        key=f"weights-trajectory-{name}",
        title="Trajectory",
        meaning=meaning,
        x=Axis("first main direction", "distance in weight space"),
        y=Axis("second main direction", "distance in weight space"),
        xs=_ends(x),
        ys=_ends(y),
        values=np.full((2, 2), np.nan),
        levels=(),
        unit="",
        points=points,
        joined=True,
    )


def spectrum_lines(name: str, contents: WeightSurvey) -> list[LinePlot]:
    """Describe the spectra of matrices: shares of eigenvalues above each size, the fitted tail, and the bulk's edge."""
    tensors = sorted(contents.spectra, key=natural)
    drawn = [tensors[i] for i in evenly(len(tensors), MOST_SPECTRA)]
    return [plot for tensor in drawn if (plot := _spectrum(name, tensor, contents.spectra[tensor])) is not None]


def _spectrum(name: str, tensor: str, spectra: Sequence[tuple[str, Spectrum]]) -> LinePlot | None:
    lines, fits, spans = [], [], []
    for (checkpoint, spectrum), colour, dash in zip(spectra, COLOURS, ("dashed", "solid"), strict=False):
        values = np.array([value for value in spectrum.values if value > LEAST * spectrum.values[0]])
        if len(values) < 2:
            continue
        ranks = np.unique(np.geomspace(1, len(values), MOST_POINTS).round().astype(int)) - 1
        x, y = values[ranks][::-1], ((ranks + 1) / len(spectrum.values))[::-1]
        style = Style(colour, dash, "circle")
        lines.append(Line(name, "eigenvalue", None, x.tolist(), y.tolist(), style, name=checkpoint))
        alpha, start, count = spectrum.numbers.get("alpha"), spectrum.start, spectrum.numbers.get("tail")
        if alpha is not None and start is not None and count is not None:
            share = count / len(spectrum.values)
            along = np.geomspace(start, values[0], MOST_POINTS)
            law = share * (along / start) ** (1 - alpha)
            tail = Style(colour, "dotted", "circle")
            lines.append(Line(name, "tail", None, along.tolist(), law.tolist(), tail, name=""))
            fits.append(
                f"{checkpoint}: α = {alpha:.2f} ± {spectrum.numbers['alpha_stderr']:.2f}, {count:.0f} in the tail"
            )
        if spectrum.edge is not None and (checkpoint, spectrum) == spectra[-1]:
            spans.append(Span(spectrum.edge, 1 / len(spectrum.values), 1.0, "edge", "edge of a random matrix"))
    if not lines:
        return None
    return LinePlot(
        key=f"weights-spectrum-{tensor}-{name}",
        title=tensor,
        x=Axis("eigenvalue", log=True),
        y=Axis("share of eigenvalues at least as large", log=True),
        lines=tuple(lines),
        names={"eigenvalue": "eigenvalues", "tail": "fitted tail"},
        meaning="; ".join(["eigenvalues of W Wᵀ/n; dotted: the fitted tail", *fits]),
        spans=tuple(spans),
    )


def _column(record: Record) -> str:
    return str(record.get("checkpoint")) if record.get("step") is None else f"{record['step']}"


def _ends(values: Sequence[float]) -> tuple[float, float]:
    margin = 0.08 * (max(values) - min(values)) or 1.0
    return min(values) - margin, max(values) + margin

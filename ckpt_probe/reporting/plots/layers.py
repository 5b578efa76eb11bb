"""Describe plots of layers: heat maps of metrics, similarities of layers and checkpoints, separation by depth."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ckpt_probe.analysis.entries import is_uncertainty
from ckpt_probe.metrics.regression import line_through
from ckpt_probe.moments.registry import all_metrics
from ckpt_probe.reporting.matrix_tables import grids_of
from ckpt_probe.reporting.plots.description import COLOURS, Axis, Frames, LayerMap, Line, LinePlot, MatrixPlot, Style
from ckpt_probe.reporting.plots.metrics import spread_out
from ckpt_probe.reporting.runs import Run

NO_HEAT_MAP = frozenset({"depth", "step", "epoch", "sample.mir_computing_error"})
"""Numbers of a record that describe the measurement, or all layers at once."""


@dataclass(frozen=True)
class LayerSimilarity:
    """Similarities of one run and split.

    Attributes:
        run: Name of the run.
        split: Name of the split.
        layers: Names (L,) of the layers.
        checkpoints: Indices (T,) of the checkpoints in the run.
        names: Names (T,) of the checkpoints.
        cka: CKA between layers at each checkpoint, shape (T, L, L).
        mir: MIR between layers at each checkpoint, shape (T, L, L), or None.
        rows: Number of compared rows.
        mir_rows: Number of compared rows for MIR.
        by_checkpoint: CKA between checkpoints, shape (T, T), by layer.
    """

    run: str
    split: str
    layers: tuple[str, ...]
    checkpoints: tuple[int, ...]
    names: tuple[str, ...]
    cka: np.ndarray
    mir: np.ndarray | None
    rows: int
    mir_rows: int
    by_checkpoint: dict[str, np.ndarray] = field(default_factory=dict)


def layer_maps(runs: Sequence[Run]) -> list[LayerMap]:
    """Describe a heat map, layer by checkpoint, of every metric of at least two layers."""
    descriptions = {metric.name: (metric.label, metric.meaning) for metric in all_metrics()}
    plots = []
    for name in _metrics(runs):
        grids = {
            run.name: grids_of(run.layered, name)
            for run in runs
            if any(isinstance(record.get(name), float) for record in run.layered)
        }
        frames = tuple(
            Frames(run, grid.split, (0,), np.array([grid.values], dtype=float))
            for run, of_run in grids.items()
            for grid in of_run
        )
        layers = {run: of_run[0].layers for run, of_run in grids.items()}
        columns = {run: of_run[0].columns for run, of_run in grids.items()}
        log = spread_out(*(frame.values for frame in frames))
        label, meaning = descriptions.get(name, (name, ""))
        plots.append(LayerMap(f"layers-{name}", label, meaning, frames, layers, columns, log))
    return plots


def similarity_plots(similarities: Sequence[LayerSimilarity]) -> list[MatrixPlot]:
    """Describe CKA and MIR between the layers of each checkpoint, and CKA of each layer between checkpoints."""
    if not similarities:
        return []
    meaning = (
        f"linear CKA between layers, on {_counts(each.rows for each in similarities)} rows that were kept of each; "
        "1 where they agree but for a rotation"
    )
    frames = tuple(Frames(each.run, each.split, each.checkpoints, each.cka) for each in similarities)
    labels = {each.run: each.layers for each in similarities}
    plots = [MatrixPlot("layers-cka", "Layers with each other", meaning, frames, labels, {}, "CKA", "layers")]
    with_mir = [(each, each.mir) for each in similarities if each.mir is not None]
    if with_mir:
        meaning = (
            f"matrix mutual information ratio between layers, on {_counts(each.mir_rows for each, _ in with_mir)} of "
            "these rows; it depends on their number, and is not 1 of a layer with itself"
        )
        frames = tuple(Frames(each.run, each.split, each.checkpoints, mir) for each, mir in with_mir)
        plots.append(
            MatrixPlot("layers-mir", "Information between layers", meaning, frames, labels, {}, "MIR", "layers")
        )
    meaning = "CKA of the layer with itself at other checkpoints: the last row says how soon it is what it ends as"
    for layer in dict.fromkeys(layer for each in similarities for layer in each.by_checkpoint):
        of_layer = [each for each in similarities if layer in each.by_checkpoint]
        frames = tuple(Frames(each.run, each.split, (0,), each.by_checkpoint[layer][None]) for each in of_layer)
        names = {each.run: each.names for each in of_layer}
        title = f"{layer} through the run"
        plots.append(MatrixPlot(f"layers-cka-{layer}", title, meaning, frames, names, {}, "CKA", "checkpoints", True))
    return plots


def separation_plots(runs: Sequence[Run]) -> list[LinePlot]:
    """Describe separation by depth at the first, the middle and the last checkpoint, with the line fitted to each."""
    pairs = [(run, split) for run in runs for split in dict.fromkeys(str(record["split"]) for record in run.layered)]
    return [plot for run, split in pairs if (plot := _separation(run, split)) is not None]


def _separation(run: Run, split: str) -> LinePlot | None:
    records = [r for r in run.layered if r["split"] == split and isinstance(r.get("separation"), float)]
    names = list(dict.fromkeys(str(record["checkpoint"]) for record in records))
    lines, chords, fits = [], [], []
    for index, number in enumerate(sorted({0, len(names) // 2, len(names) - 1}) if names else []):
        points = sorted((float(r["depth"]), r["separation"]) for r in records if str(r["checkpoint"]) == names[number])
        fit = line_through(points)
        if fit is None:
            continue
        style = Style(COLOURS[index], ("dotted", "dashed", "solid")[index], ("circle", "square", "triangle")[index])
        x, y = [depth for depth, _ in points], [value for _, value in points]
        lines.append(Line(run.name, "separation", split, x, y, style, name=names[number]))
        first, last = ((depth, fit.intercept + fit.slope * depth) for depth in (min(x), max(x)))
        chords.append((*first, *last, style.colour))
        fits.append(f"{names[number]}: slope {fit.slope:.3g}, R² {fit.r2:.3f}")
    if not lines:
        return None
    return LinePlot(
        key=f"separation-{run.name}-{split}",
        title=f"{run.name}: separation, {split}",
        x=Axis("depth", bounds=(0.0, 1.0)),
        y=Axis("separation"),
        lines=tuple(lines),
        names={"separation": "separation"},
        meaning=f"log tr(Σ_W Σ_B⁺) by depth, falling on a line where the law of separation holds; {'; '.join(fits)}",
        chords=tuple(chords),
    )


def _counts(numbers: Iterable[int]) -> str:
    return " or ".join(f"{number:,}" for number in sorted(set(numbers)))


def _metrics(runs: Iterable[Run]) -> list[str]:
    """Return the names of metrics of at least two layers, in the documented order."""
    layers: dict[str, set[str]] = {}
    for record in (record for run in runs for record in run.layered):
        for name, value in record.items():
            described = name not in NO_HEAT_MAP and not name.startswith("reference.")
            if described and isinstance(value, float) and math.isfinite(value):
                layers.setdefault(name, set()).add(str(record["layer"]))
    order = [metric.name for metric in all_metrics()]
    known = [name for name in order if name in layers]
    others = [name for name in layers if name not in order and not is_uncertainty(name, layers)]
    return [name for name in [*known, *others] if len(layers[name]) > 1]

"""Records by layer, and rows kept of layers → heat maps, similarities of layers and checkpoints, and separation."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ckpt_probe.metrics.regression import line_through
from ckpt_probe.moments.registry import all_metrics
from ckpt_probe.reporting.layers_table import Grid, grids_of
from ckpt_probe.reporting.plots.description import COLOURS, Axis, Frames, LayerMap, Line, LinePlot, MatrixPlot, Style
from ckpt_probe.reporting.runs import Run

DESCRIBED = frozenset({"depth", "step", "epoch", "sample.mir_stderr"})
"""Numbers of a record that say what was measured, or are of all layers at once."""

DECADES = 2
"""Powers of ten between the smallest and the largest value from which on colours follow the logarithm."""

SHOWN = 3
"""Checkpoints whose separation is drawn against depth."""


@dataclass(frozen=True)
class LayerLikeness:
    """Similarities of one run and split: between layers at each checkpoint, and between checkpoints of each layer.

    layers (L,); cka (T, L, L) and mir, or None, at `checkpoints`, by their numbers in the run; through: CKA (T, T) by
    layer. rows and mir_rows: of how many rows.
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
    through: dict[str, np.ndarray] = field(default_factory=dict)


def layer_maps(runs: Sequence[Run]) -> list[LayerMap]:
    """A heat map, layer by checkpoint, of every number that more than one layer has."""
    described = {metric.name: (metric.label, metric.meaning) for metric in all_metrics()}
    plots = []
    for name in _metrics(runs):
        grids = {run.name: grids_of(run.layered, name) for run in runs if _has(run, name)}
        frames = tuple(
            Frames(run, grid.split, (0,), _values(grid)[None]) for run, held in grids.items() for grid in held
        )
        layers = {run: held[0].layers for run, held in grids.items()}
        columns = {run: held[0].columns for run, held in grids.items()}
        label, meaning = described.get(name, (name, ""))
        plots.append(LayerMap(f"layers-{name}", label, meaning, frames, layers, columns, _spans_decades(frames)))
    return plots


def similarity_plots(found: Sequence[LayerLikeness]) -> list[MatrixPlot]:
    """CKA and MIR between the layers of a checkpoint, moved by the slider, and CKA of each layer over checkpoints."""
    if not found:
        return []
    meaning = (
        f"linear CKA between layers, on {_counts(one.rows for one in found)} rows that were kept of each; 1 where they "
        "agree but for a rotation"
    )
    frames = tuple(Frames(one.run, one.split, one.checkpoints, one.cka) for one in found)
    labels = {one.run: one.layers for one in found}
    plots = [MatrixPlot("layers-cka", "Layers with each other", meaning, frames, labels, {}, "CKA", "layers")]
    frames = tuple(Frames(one.run, one.split, one.checkpoints, one.mir) for one in found if one.mir is not None)
    if frames:
        rows = _counts(one.mir_rows for one in found if one.mir is not None)
        meaning = (
            f"matrix mutual information ratio between layers, on {rows} of these rows; it depends on their number, and "
            "is not 1 of a layer with itself"
        )
        plots.append(
            MatrixPlot("layers-mir", "Information between layers", meaning, frames, labels, {}, "MIR", "layers")
        )
    for layer in dict.fromkeys(layer for one in found for layer in one.through):
        mine = [one for one in found if layer in one.through]
        frames = tuple(Frames(one.run, one.split, (0,), one.through[layer][None]) for one in mine)
        meaning = "CKA of the layer with itself at other checkpoints: the last row says how soon it is what it ends as"
        names = {one.run: one.names for one in mine}
        title = f"{layer} through the run"
        plots.append(MatrixPlot(f"layers-cka-{layer}", title, meaning, frames, names, {}, "CKA", "checkpoints", True))
    return plots


def separation_plots(runs: Sequence[Run]) -> list[LinePlot]:
    """Separation against depth, at the first, the middle and the last checkpoint, with the line that fits each."""
    return [plot for run in runs for split in _splits(run) if (plot := _separation(run, split)) is not None]


def _separation(run: Run, split: str) -> LinePlot | None:
    mine = [r for r in run.layered if r["split"] == split and isinstance(r.get("separation"), float)]
    names = list(dict.fromkeys(str(record["checkpoint"]) for record in mine))
    lines, chords, fits = [], [], []
    for place, number in enumerate(sorted({0, len(names) // 2, len(names) - 1}) if names else []):
        points = sorted((float(r["depth"]), r["separation"]) for r in mine if str(r["checkpoint"]) == names[number])
        fitted = line_through(points)
        if fitted is None:
            continue
        style = Style(COLOURS[place], ("dotted", "dashed", "solid")[place], ("circle", "square", "triangle")[place])
        x, y = [depth for depth, _ in points], [value for _, value in points]
        lines.append(Line(run.name, "separation", split, x, y, style, name=names[number]))
        ends = (min(x), max(x))
        chords.append(
            (ends[0], fitted.intercept + fitted.slope * ends[0], ends[1], fitted.intercept + fitted.slope * ends[1],
             style.colour)
        )  # fmt: skip
        fits.append(f"{names[number]}: slope {fitted.slope:.3g}, R² {fitted.r2:.3f}")
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
    found: dict[str, set[str]] = {}
    for run in runs:
        for record in run.layered:
            for name, value in record.items():
                if isinstance(value, float) and math.isfinite(value) and not _is_described(name):
                    found.setdefault(name, set()).add(str(record["layer"]))
    order = [metric.name for metric in all_metrics()]
    known = [name for name in order if name in found]
    return [name for name in [*known, *(set(found) - set(order))] if len(found[name]) > 1]


def _is_described(name: str) -> bool:
    return name in DESCRIBED or name.startswith("reference.")


def _has(run: Run, name: str) -> bool:
    return any(isinstance(record.get(name), float) for record in run.layered)


def _splits(run: Run) -> list[str]:
    return list(dict.fromkeys(str(record["split"]) for record in run.layered))


def _values(grid: Grid) -> np.ndarray:
    return np.array([[math.nan if value is None else value for value in row] for row in grid.values], dtype=float)


def _spans_decades(frames: Sequence[Frames]) -> bool:
    values = np.concatenate([frame.values.ravel() for frame in frames])
    values = values[np.isfinite(values)]
    return bool(len(values) and values.min() > 0 and math.log10(values.max() / values.min()) > DECADES)

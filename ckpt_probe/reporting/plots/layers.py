"""Describe plots of layers and of the weights of blocks: heat maps, similarities, separation, trajectory, spectra."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ckpt_probe.analysis.records import finite, grouped_by, metric_names
from ckpt_probe.analysis.similarity import Similarity
from ckpt_probe.metrics.covariance import line_through
from ckpt_probe.moments.registry import Metric
from ckpt_probe.moments.selection import all_metrics, metric_named, weight_metrics
from ckpt_probe.reporting.matrix_tables import grids_of
from ckpt_probe.reporting.plots.description import (
    COLOURS,
    Axis,
    ContourPlot,
    Frames,
    LayerMap,
    Line,
    LinePlot,
    MatrixPlot,
    PlanePoint,
    Span,
    Style,
    evenly,
)
from ckpt_probe.reporting.plots.runs import Run, is_measure, spread_out
from ckpt_probe.reporting.wording import Record
from ckpt_probe.series import natural
from ckpt_probe.trajectories.series import WeightSurvey
from ckpt_probe.trajectories.spectra import Spectrum

OfRun = tuple[str, int, Similarity]
"""Name of a run, index of a checkpoint in it (0 for a matrix between checkpoints), and a matrix of similarities."""

OF_LAYERS = {
    "cka": (
        "Layers with each other",
        "linear CKA between layers, on {} rows that were kept of each; 1 where they agree but for a rotation",
    ),
    "mir": (
        "Information between layers",
        "matrix mutual information ratio between layers, on {} of these rows; it depends on their number, and is not 1 "
        "of a layer with itself",
    ),
}
"""Title and meaning of the matrices of each measure; the meaning has a place for the number of rows."""


Cells = Mapping[tuple[str, str], np.ndarray]
"""Values (L, T) of a heat map by run and split, NaN for a missing one."""


def frames_of(cells: Cells) -> tuple[Frames, ...]:
    """Return the frames of a heat map."""
    return tuple(Frames(run, split, (0,), values[None]) for (run, split), values in cells.items())


def layer_maps(runs: Sequence[Run]) -> list[LayerMap]:
    """Describe a heat map, layer by checkpoint, of every metric of at least two layers."""
    plots = []
    for name in _metrics(runs):
        grids = {run.name: grids_of(run.layered, name) for run in runs if name in metric_names(run.layered)}
        cells = {
            (run, grid.split): np.array(grid.values, dtype=float) for run, of_run in grids.items() for grid in of_run
        }
        layers = {run: of_run[0].layers for run, of_run in grids.items()}
        columns = {run: of_run[0].columns for run, of_run in grids.items()}
        metric = metric_named(name) or Metric(name, name, "", "")
        key, log = f"layers-{name}", spread_out(*cells.values())
        plots.append(LayerMap(key, metric.label, metric.meaning, frames_of(cells), layers, columns, log))
    return plots


def similarity_plots(similarities: Sequence[OfRun]) -> list[MatrixPlot]:
    """Describe CKA and MIR between the layers of each checkpoint, and CKA of each layer between checkpoints."""
    plots = []
    kinds = grouped_by(similarities, lambda each: (each[2].layer or "", each[2].measure))
    for (layer, measure), of_kind in sorted(kinds.items(), key=lambda item: item[0][0] != ""):
        rows = " or ".join(f"{number:,}" for number in sorted({matrix.samples for _, _, matrix in of_kind}))
        frames = tuple(
            Frames(run, split, tuple(at for _, at, _ in each), np.array([m.values for _, _, m in each], dtype=float))
            for (run, split), each in grouped_by(of_kind, lambda each: (each[0], each[2].split)).items()
        )
        labels = {run: matrix.rows for run, _, matrix in of_kind}
        title, meaning = OF_LAYERS[measure]
        if layer:
            title = f"{layer} through the run"
            meaning = (
                "CKA of the layer with itself at other checkpoints: the last row says how soon it is what it ends as"
            )
        key = f"layers-{measure}{f'-{layer}' if layer else ''}"
        between = "checkpoints" if layer else "layers"
        plots.append(
            MatrixPlot(key, title, meaning.format(rows), frames, labels, {}, measure.upper(), between, bool(layer))
        )
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


def _metrics(runs: Iterable[Run]) -> list[str]:
    """Return the names of metrics of at least two layers, in the documented order."""
    records = [record for run in runs for record in run.layered]
    names = [name for name in metric_names(records) if is_measure(name)]
    layers = {name: {str(each["layer"]) for each in records if finite(each.get(name)) is not None} for name in names}
    order = [metric.name for metric in all_metrics()]
    names.sort(key=lambda name: order.index(name) if name in order else len(order))
    return [name for name in names if len(layers[name]) > 1]


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
    for metric in (metric for metric in weight_metrics() if metric.name not in NO_MAP):
        values = np.array(
            [[finite(at.get((row, column), {}).get(metric.name)) for column in columns] for row in rows], dtype=float
        )
        if np.isfinite(values).any(axis=1).sum() < 2 or np.nanmin(values) == np.nanmax(values):
            continue
        key, frames = f"{prefix}-{metric.name}", frames_of({(name, ""): values})
        names = {name: tuple(rows)}, {name: tuple(columns)}
        plots.append(LayerMap(key, metric.label, metric.meaning, frames, *names, spread_out(values)))
    return plots


def trajectory_plot(name: str, records: Sequence[Record]) -> list[ContourPlot]:
    """Describe the trajectory in the plane of its two main directions; empty if the records have no positions."""
    known = [record for record in records if all(isinstance(record.get(axis), float) for axis in PLANE)]
    if len(known) < 3:
        return []
    x, y = ([float(record[axis]) for record in known] for axis in PLANE)
    shares = [known[0].get(f"motion.{kind}_share_{i}") for i in (1, 2) for kind in ("pca", "walk")]
    meaning = "the checkpoints in the plane of their two main directions"
    if all(isinstance(share, float) for share in shares):
        first, walk_first, second, walk_second = (f"{share:.0%}" for share in shares)
        meaning += f"; shares of variance {first} and {second}, of a random walk as long {walk_first} and {walk_second}"
    named = set(evenly(len(known), MOST_NAMES))
    points = tuple(PlanePoint(_column(record) if i in named else "", x[i], y[i], "") for i, record in enumerate(known))
    plot = ContourPlot(
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
    return [plot]


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

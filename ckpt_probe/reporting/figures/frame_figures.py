"""Figures of checkpoints of one run: cosine matrices, heat maps of layers, and spectra."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ckpt_probe.reporting.contents import Track
from ckpt_probe.reporting.figures.canvas import drawing
from ckpt_probe.reporting.figures.line_figure import DASHES, LEVEL, scale_x, words, x_label
from ckpt_probe.reporting.plots.description import COLOURS, GREY, Axis, Frames, LayerMap, MatrixPlot, SpectrumPlot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FOLLOWED = (1, 2, 4, 8, 16, 39)
"""Ranks whose eigenvalues are followed through a run, as the page follows them."""

LEAST = 1e-7
"""Share of the largest eigenvalue below which one is rounding."""

MOST_WRITTEN, MOST_LABELS, MOST_COLUMNS = 12, 30, 12


def draw_matrices(plot: MatrixPlot, frames: Sequence[Frames], path: Path, *, overwrite: bool) -> list[str]:
    """Draw the last cosine matrix of each of `frames`, splits of one run; return the warnings of matplotlib."""
    with drawing(path, (3.6 * len(frames) + 0.6, 3.8), overwrite=overwrite, axes_grid=False) as (figure, warnings):
        for axes, frame in zip(figure.subplots(1, len(frames), squeeze=False).flat, frames, strict=True):
            labels = plot.labels[frame.run]
            image = axes.imshow(frame.values[-1], cmap="RdBu", vmin=-1, vmax=1)
            indices = range(0, len(labels), -(-len(labels) // MOST_LABELS))
            names = [words(labels[i], 14) for i in indices]
            axes.set_xticks(list(indices), names, rotation=90 if max(map(len, names)) > 2 else 0)
            axes.set_yticks(list(indices), names)
            _write_cosines(axes, frame.values[-1])
            axes.set_title(words(" ".join(part for part in (plot.title, frame.split) if part)))
            figure.colorbar(image, ax=axes, label=plot.unit, shrink=0.8)
        figure.suptitle(words(frames[0].run))
    return warnings


def draw_layer_map(plot: LayerMap, frames: Sequence[Frames], path: Path, *, overwrite: bool) -> list[str]:
    """Draw a heat map for each of `frames`, splits of one run; return the warnings of matplotlib."""
    from matplotlib.colors import LogNorm, Normalize

    run = frames[0].run
    layers, columns = plot.layers[run], plot.columns[run]
    values = [np.ma.masked_invalid(frame.values[0]) for frame in frames]
    ends = {"vmin": min(v.min() for v in values), "vmax": max(v.max() for v in values)}
    size = (6.8, (0.5 + 0.19 * len(layers)) * len(frames) + 0.7)
    with drawing(path, size, overwrite=overwrite, axes_grid=False) as (figure, warnings):
        for axes, frame, matrix in zip(
            figure.subplots(len(frames), 1, squeeze=False).flat, frames, values, strict=True
        ):
            norm = LogNorm(**ends) if plot.log else Normalize(**ends)
            image = axes.imshow(matrix, cmap="cividis", norm=norm, aspect="auto", interpolation="nearest")
            every = -(-len(columns) // MOST_COLUMNS)
            axes.set_xticks(range(0, len(columns), every), [words(name, 10) for name in columns[::every]])
            axes.set_yticks(range(len(layers)), [words(name, 20) for name in layers])
            axes.set_ylabel(words(frame.split))
            figure.colorbar(image, ax=axes)
        figure.suptitle(words(f"{plot.title}, {run}"))
    return warnings


def draw_spectra(
    plot: SpectrumPlot, frames: Sequence[Frames], track: Track, x: Axis, path: Path, *, overwrite: bool
) -> list[str]:
    """Draw a spectrum for each of `frames`, splits of one run: by rank, and a few ranks through it.

    Returns what matplotlib warned of.
    """
    with drawing(path, (6.8, 2.4 * len(frames) + 0.3), overwrite=overwrite) as (figure, warnings):
        for row, frame in zip(figure.subplots(len(frames), 2, squeeze=False), frames, strict=True):
            top = float(np.nanmax(frame.values))
            values = np.where(frame.values > LEAST * top, frame.values, np.nan)
            _by_rank(row[0], plot, frame, values)
            _through(row[1], plot, [track.positions[number] for number in frame.checkpoints], values, x)
        figure.suptitle(words(f"{plot.title}, {frames[0].run}"))
    return warnings


def _write_cosines(axes: "Axes", cosines: np.ndarray) -> None:
    if len(cosines) > MOST_WRITTEN:
        return
    for (i, j), value in np.ndenumerate(cosines):
        text = "–" if np.isnan(value) else f"{value:.2f}".replace("0.", ".").replace("-", "−")
        axes.text(j, i, text, ha="center", va="center", fontsize=5.5, color="white" if abs(value) > 0.62 else "#222222")


def _by_rank(axes: "Axes", plot: SpectrumPlot, frame: Frames, values: np.ndarray) -> None:
    if len(values) > 1:
        axes.plot(plot.ranks, values[0], color=GREY, linestyle=DASHES["dotted"], linewidth=1.0, label="first")
    axes.plot(plot.ranks, values[-1], color=COLOURS[0], marker="o", markersize=2.5, linewidth=1.2, label="last")
    count = plot.at_collapse.get(frame.run)
    if count:
        axes.plot([1, count], [1 / count] * 2, color=GREY, linestyle=LEVEL, linewidth=0.9, label="at collapse")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("rank of the eigenvalue")
    axes.set_ylabel(words(f"eigenvalue, {frame.split}"))
    axes.legend()


def _through(axes: "Axes", plot: SpectrumPlot, positions: Sequence[float | None], values: np.ndarray, x: Axis) -> None:
    known = np.array([np.nan if position is None else position for position in positions])
    nearest = [min(range(len(plot.ranks)), key=lambda i: abs(plot.ranks[i] - rank)) for rank in FOLLOWED]
    styles = zip(dict.fromkeys(nearest), COLOURS, [*DASHES.values(), "solid"], strict=False)
    for index, colour, dash in styles:
        axes.plot(known, values[:, index], color=colour, linestyle=dash, linewidth=1.2, label=f"#{plot.ranks[index]}")
    scale_x(axes, x, float(np.nanmax(known)))
    axes.set_yscale("log")
    axes.set_xlabel(x_label(x, narrow=True))
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title="rank", title_fontsize=7)

"""Figures of all plots of a report, one file per plot; all but lines are drawn here, also events and planes."""

import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ckpt_probe.analysis.records import grouped_by
from ckpt_probe.errors import DataError, printable
from ckpt_probe.findings import Findings
from ckpt_probe.progress import NullProgress, Progress
from ckpt_probe.reporting.findings import event_plot
from ckpt_probe.reporting.line_figure import (
    DASHES,
    LEVEL,
    Paint,
    draw,
    of_lines,
    require_drawable,
    scale_x,
    words,
    x_label,
)
from ckpt_probe.reporting.plots.description import (
    COLOURS,
    GREY,
    Axis,
    ContourPlot,
    Frames,
    IntervalPlot,
    LayerMap,
    LinePlot,
    MatrixPlot,
    PlanePoint,
    Plot,
    SpectrumPlot,
    colour_of,
)
from ckpt_probe.reporting.plots.paths import contour_plots
from ckpt_probe.reporting.sections import Contents, Track

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ckpt_probe.paths import PlaneResult

LONGEST_NAME = 100


Drawing = tuple[str, tuple[float, float], Paint]
"""Name of a file without suffix, size in inches, and the function that draws the figure."""


def draw_contents(
    contents: Contents, folder: Path, kind: str, *, overwrite: bool = False, progress: Progress | None = None
) -> list[Path]:
    """Draw every plot of a report into `folder`, except the table of classes, and return the files.

    Matrices and spectra are those of each run's last checkpoint, and spectra are also followed through the run.

    Raises:
        UsageError: If matplotlib is not installed, or one of the files exists and `overwrite` is not set.
    """
    progress = progress or NullProgress()
    drawings = [
        drawing for section in contents.sections for plot in section.plots for drawing in _drawings(plot, contents)
    ]
    files = [folder / f"{name}.{kind}" for name in _file_names([name for name, _, _ in drawings])]
    for file in files:
        require_drawable(file, overwrite=overwrite)
    warnings: dict[str, None] = {}
    with progress.task("figures", len(files), "figures") as bar:
        for file, (_, size, paint) in zip(files, drawings, strict=True):
            warnings |= dict.fromkeys(draw(file, size, paint, overwrite=overwrite))
            bar.advance()
    for line in warnings:
        progress.message(line)
    return files


def _drawings(plot: Plot, contents: Contents) -> Iterable[Drawing]:
    if isinstance(plot, LinePlot):
        yield plot.key, *of_lines([plot])
    elif isinstance(plot, IntervalPlot):
        yield plot.key, (WIDTH, HEIGHT_OF_ROW * len(plot.rows) + 0.9), partial(_intervals, plot)
    elif isinstance(plot, ContourPlot):
        yield plot.key, *_of_contours([plot])
    elif isinstance(plot, MatrixPlot | LayerMap | SpectrumPlot):
        for run, frames in grouped_by(plot.frames, lambda frame: frame.run).items():
            name, count = f"{plot.key}-{run}", len(frames)
            if isinstance(plot, MatrixPlot):
                yield name, (3.6 * count + 0.6, 3.8), partial(_matrices, plot, frames)
            elif isinstance(plot, LayerMap):
                height = (0.5 + 0.19 * len(plot.layers[run])) * count + 0.7
                yield name, (6.8, height), partial(_layer_map, plot, frames)
            else:
                [track] = [track for track in contents.tracks if track.run == run]
                yield name, (6.8, 2.4 * count + 0.3), partial(_spectra, plot, frames, track, contents.axis)


def _file_names(keys: Iterable[str]) -> list[str]:
    """Return distinct file names for keys, with characters that every file system allows."""
    names: list[str] = []
    for key in keys:
        name = re.sub(r"[^\w.=,+-]+", "-", printable(key)).strip("-.")[:LONGEST_NAME] or "figure"
        taken, number = name.lower(), 1
        while taken in {other.lower() for other in names}:
            number += 1
            taken = f"{name}-{number}".lower()
        names.append(name if number == 1 else f"{name}-{number}")
    return names


FOLLOWED = (1, 2, 4, 8, 16, 39)
"""Ranks whose eigenvalues are followed through a run, as the page follows them."""

LEAST = 1e-7
"""Share of the largest eigenvalue below which one is rounding."""

MOST_WRITTEN, MOST_LABELS, MOST_COLUMNS = 12, 30, 12


def _matrices(plot: MatrixPlot, frames: Sequence[Frames], figure: "Figure") -> None:
    """Draw the last matrix of each of `frames`, splits of one run."""
    for axes, frame in zip(figure.subplots(1, len(frames), squeeze=False).flat, frames, strict=True):
        labels = plot.labels[frame.run]
        image = axes.imshow(frame.values[-1], cmap="RdBu", vmin=-1, vmax=1)
        indices = range(0, len(labels), -(-len(labels) // MOST_LABELS))
        names = [words(labels[i], 14) for i in indices]
        axes.set_xticks(list(indices), names, rotation=90 if max(map(len, names)) > 2 else 0)
        axes.set_yticks(list(indices), names)
        axes.grid(visible=False)
        _write_cosines(axes, frame.values[-1])
        axes.set_title(words(" ".join(part for part in (plot.title, frame.split) if part)))
        figure.colorbar(image, ax=axes, label=plot.unit, shrink=0.8)
    figure.suptitle(words(frames[0].run))


def _layer_map(plot: LayerMap, frames: Sequence[Frames], figure: "Figure") -> None:
    """Draw a heat map for each of `frames`, splits of one run."""
    from matplotlib.colors import LogNorm, Normalize

    run = frames[0].run
    layers, columns = plot.layers[run], plot.columns[run]
    values = [np.ma.masked_invalid(frame.values[0]) for frame in frames]
    ends = {"vmin": min(v.min() for v in values), "vmax": max(v.max() for v in values)}
    panels = figure.subplots(len(frames), 1, squeeze=False).flat
    for axes, frame, matrix in zip(panels, frames, values, strict=True):
        norm = LogNorm(**ends) if plot.log else Normalize(**ends)
        image = axes.imshow(matrix, cmap="cividis", norm=norm, aspect="auto", interpolation="nearest")
        every = -(-len(columns) // MOST_COLUMNS)
        axes.set_xticks(range(0, len(columns), every), [words(name, 10) for name in columns[::every]])
        axes.set_yticks(range(len(layers)), [words(name, 20) for name in layers])
        axes.set_ylabel(words(frame.split))
        axes.grid(visible=False)
        figure.colorbar(image, ax=axes)
    figure.suptitle(words(f"{plot.title}, {run}"))


def _spectra(plot: SpectrumPlot, frames: Sequence[Frames], track: Track, x: Axis, figure: "Figure") -> None:
    """Draw a spectrum for each of `frames`, splits of one run: by rank, and a few ranks through the run."""
    for row, frame in zip(figure.subplots(len(frames), 2, squeeze=False), frames, strict=True):
        top = float(np.nanmax(frame.values))
        values = np.where(frame.values > LEAST * top, frame.values, np.nan)
        _by_rank(row[0], plot, frame, values)
        _through(row[1], plot, [track.positions[number] for number in frame.checkpoints], values, x)
    figure.suptitle(words(f"{plot.title}, {frames[0].run}"))


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
    known = np.array(positions, dtype=float)
    nearest = [min(range(len(plot.ranks)), key=lambda i: abs(plot.ranks[i] - rank)) for rank in FOLLOWED]
    styles = zip(dict.fromkeys(nearest), COLOURS, [*DASHES.values(), "solid"], strict=False)
    for index, colour, dash in styles:
        axes.plot(known, values[:, index], color=colour, linestyle=dash, linewidth=1.2, label=f"#{plot.ranks[index]}")
    scale_x(axes, x, float(np.nanmax(known)))
    axes.set_yscale("log")
    axes.set_xlabel(x_label(x, narrow=True))
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title="rank", title_fontsize=7)


NARROW = 4
"""Ratio of the axes' lengths beyond which they are drawn to different scales."""


def draw_plane(result: "PlaneResult", path: Path | str, *, overwrite: bool = False) -> list[str]:
    """Draw the loss over a plane into an SVG, PNG or PDF file, by its suffix; return the warnings of matplotlib.

    Equal results give equal bytes. Levels are evenly spaced in the logarithm; points without a loss are left white.

    Raises:
        UsageError: If matplotlib is not installed, the suffix is unknown, or the file exists and `overwrite` is not
            set.
    """
    return draw(Path(path), *_of_contours(contour_plots(result)), overwrite=overwrite)


def _of_contours(plots: Sequence[ContourPlot]) -> tuple[tuple[float, float], Paint]:
    """Return the size of a figure of contour plots side by side, and the function that draws it."""

    def paint(figure: "Figure") -> None:
        for axes, plot in zip(figure.subplots(1, len(plots), squeeze=False).flat, plots, strict=True):
            _contours(figure, axes, plot)

    return (4.4 * len(plots), 3.4), paint


def _contours(figure: "Figure", axes: "Axes", plot: ContourPlot) -> None:
    from matplotlib.colors import LogNorm

    if plot.levels:
        low, *top = plot.levels
        values = np.maximum(plot.values, low)
        filled = axes.contourf(plot.xs, plot.ys, values, plot.levels, norm=LogNorm(low, top[-1]), cmap="viridis")
        ticks = [low, *top[1::3]]
        bar = figure.colorbar(filled, ax=axes, label=f"loss ({plot.unit})", ticks=ticks)
        bar.ax.set_yticklabels([f"{level:.3g}" for level in ticks])
        bar.ax.minorticks_off()
    if plot.joined:
        axes.plot([p.x for p in plot.points], [p.y for p in plot.points], color="#444444", linewidth=1.0)
    for mark in plot.points:
        _mark(axes, mark)
    axes.grid(visible=False)
    axes.set_xlim(plot.xs[0], plot.xs[-1])
    axes.set_ylim(plot.ys[0], plot.ys[-1])
    ratio = (plot.xs[-1] - plot.xs[0]) / (plot.ys[-1] - plot.ys[0])
    axes.set_aspect("equal" if 1 / NARROW < ratio < NARROW else "auto")
    axes.set_xlabel(plot.x.label)
    axes.set_ylabel(plot.y.label)
    axes.set_title(plot.title)


def _mark(axes: "Axes", mark: PlanePoint) -> None:
    position = mark.x, mark.y
    axes.plot(*position, marker="o", color="white", markeredgecolor="black", markersize=5, clip_on=False)
    axes.annotate(
        mark.name,
        position,
        xytext=(5, 4),
        textcoords="offset points",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.8},
    )


HEIGHT_OF_ROW, HEIGHT_OF_METRICS, WIDTH = 0.22, 2.6, 7.0
BARS = {"change": (0.25, 0.35), "onset": (0.7, 1.0), "end": (0.7, 0.55)}
"""Height and opacity of the bars of each kind of event."""


def draw_events(findings: Findings, path: Path | str, *, overwrite: bool = False) -> None:
    """Draw intervals, one row per metric sorted by onset, and the metrics beneath, each between 0 and 1.

    Intervals of one metric in several runs are drawn upon each other; the metrics have a band over the runs.

    Args:
        findings: The findings.
        path: File to write; its suffix .svg, .png or .pdf decides the format.
        overwrite: Whether to replace an existing file.

    Raises:
        DataError: If there is no event.
        UsageError: If matplotlib is not installed, or the suffix is unknown.
    """
    plot = event_plot("", findings)
    if plot is None:
        raise DataError(f"{path}: no event to draw")
    runs = len({(event["group"], event["seed"]) for event in findings})
    heights = [HEIGHT_OF_ROW * len(plot.rows) + 0.3, HEIGHT_OF_METRICS]

    def paint(figure: "Figure") -> None:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=heights)
        _rows(above, plot, runs)
        for row, name in enumerate(plot.rows):
            _metric(below, findings, name, colour_of(row, len(plot.rows)))
        _scale(below, plot.x)
        below.set(ylabel="share of the range")

    draw(Path(path), (WIDTH, sum(heights) + 0.6), paint, overwrite=overwrite)


def _intervals(plot: IntervalPlot, figure: "Figure") -> None:
    """Draw the intervals of one run."""
    axes = figure.subplots()
    _rows(axes, plot, 1)
    _scale(axes, plot.x)


def _rows(axes: "Axes", plot: IntervalPlot, runs: int) -> None:
    count = len(plot.rows)
    for bar in plot.bars:
        height, opacity = BARS[bar.kind]
        row = plot.rows.index(bar.row)
        colour = colour_of(row, count)
        axes.barh(row, bar.stop - bar.start, height, bar.start, color=colour, alpha=opacity / runs**0.5, lw=0)
    axes.set_yticks(range(count), [printable(name) for name in plot.rows])
    axes.invert_yaxis()
    axes.set_title("full: onset, pale: end, thin: change", loc="left")


def _metric(axes: "Axes", findings: Findings, name: str, colour: str) -> None:
    curves = [each for each in findings.series if each.name == name]
    steps = sorted(set.intersection(*(set(each.steps.tolist()) for each in curves)))
    values = np.array([np.interp(steps, each.steps, each.values) for each in curves])
    values = (values - values.min()) / max(float(np.ptp(values)), 1e-300)
    axes.plot(steps, values.mean(axis=0), color=colour)
    if len(curves) > 1:
        axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, lw=0)


def _scale(axes: "Axes", x: Axis) -> None:
    if x.log:
        axes.set_xscale("symlog", linthresh=x.linear_to or 1)
    axes.set_xlabel(x.label)

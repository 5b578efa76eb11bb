"""Export of all plots of a report as figures, one file per plot."""

import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from ckpt_probe.analysis.records import grouped_by
from ckpt_probe.errors import printable
from ckpt_probe.progress import NullProgress, Progress
from ckpt_probe.reporting.contents import Contents
from ckpt_probe.reporting.figures.canvas import require_drawable
from ckpt_probe.reporting.figures.events_figure import draw_interval_plot
from ckpt_probe.reporting.figures.frame_figures import draw_layer_map, draw_matrices, draw_spectra
from ckpt_probe.reporting.figures.line_figure import draw_line_plots
from ckpt_probe.reporting.figures.plane_figure import draw_contour_plots
from ckpt_probe.reporting.plots.description import (
    ContourPlot,
    Frames,
    IntervalPlot,
    LayerMap,
    LinePlot,
    MatrixPlot,
    Plot,
    SpectrumPlot,
)

LONGEST_NAME = 100

Drawing = tuple[str, Callable[..., list[str]]]
"""Name of a file without suffix, and a function that draws into its path and returns the warnings of matplotlib."""


def draw_contents(
    contents: Contents, folder: Path, kind: str, *, overwrite: bool = False, progress: Progress | None = None
) -> list[Path]:
    """Draw every plot of a report into `folder`; returns the files. The table of classes is no figure.

    Matrices and spectra are those of each run's last checkpoint, and spectra are also followed through the run. Raises
    UsageError where matplotlib is not installed, or one of the files exists and `overwrite` is not set.
    """
    progress = progress or NullProgress()
    drawings = [
        drawing for section in contents.sections for plot in section.plots for drawing in _drawings(plot, contents)
    ]
    files = [folder / f"{name}.{kind}" for name in _file_names([name for name, _ in drawings])]
    for file in files:
        require_drawable(file, overwrite=overwrite)
    warnings: dict[str, None] = {}
    with progress.task("figures", len(files), "figures") as bar:
        for file, (_, draw) in zip(files, drawings, strict=True):
            warnings |= dict.fromkeys(draw(file, overwrite=overwrite))
            bar.advance()
    for line in warnings:
        progress.message(line)
    return files


def _drawings(plot: Plot, contents: Contents) -> Iterable[Drawing]:
    if isinstance(plot, LinePlot):
        yield plot.key, partial(draw_line_plots, [plot])
    elif isinstance(plot, IntervalPlot):
        yield plot.key, partial(draw_interval_plot, plot)
    elif isinstance(plot, ContourPlot):
        yield plot.key, partial(draw_contour_plots, [plot])
    elif isinstance(plot, MatrixPlot):
        for run, frames in _by_run(plot.frames):
            yield f"{plot.key}-{run}", partial(draw_matrices, plot, frames)
    elif isinstance(plot, LayerMap):
        for run, frames in _by_run(plot.frames):
            yield f"{plot.key}-{run}", partial(draw_layer_map, plot, frames)
    elif isinstance(plot, SpectrumPlot):
        tracks = {track.run: track for track in contents.tracks}
        for run, frames in _by_run(plot.frames):
            yield f"{plot.key}-{run}", partial(draw_spectra, plot, frames, tracks[run], contents.axis)


def _by_run(frames: Iterable[Frames]) -> Iterable[tuple[str, list[Frames]]]:
    return grouped_by(frames, lambda frame: frame.run).items()


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

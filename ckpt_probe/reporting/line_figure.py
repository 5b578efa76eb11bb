"""Figures of line plots: panels with a common x axis, in the style of all figures, as SVG, PNG or PDF."""

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt_probe.errors import UsageError, listed, printable, shortened
from ckpt_probe.files import refuse_existing, replacing
from ckpt_probe.keywords import as_sequence
from ckpt_probe.reporting.conditions import RecordsSource, conditions_of
from ckpt_probe.reporting.plots.curves import by_group, line_plots, panels_of
from ckpt_probe.reporting.plots.description import GREY, Axis, Line, LinePlot, Mark, Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 200

STYLE = Path(__file__).with_name("paper.mplstyle")
METADATA = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}, "pdf": {"CreationDate": None}}
"""Formats of figures, and the entries of their metadata that would differ for equal figures."""


def require_drawable(path: Path, *, overwrite: bool) -> None:
    """Raise UsageError for an unknown suffix, an existing file, or missing matplotlib."""
    if _kind(path) not in METADATA:
        raise UsageError(f"{path}: expected a name that ends in {listed([f'.{suffix}' for suffix in METADATA])}")
    refuse_existing(path, overwrite=overwrite)
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError('figures need matplotlib: pip install "ckpt-probe[figures]"') from error


Paint = Callable[["Figure"], None]
"""Function that draws into an empty figure."""


def draw(path: Path, size: tuple[float, float], paint: Paint, *, overwrite: bool) -> list[str]:
    """Draw a figure in the style of all figures, whatever the user's settings are, and write its file atomically.

    Args:
        path: File to write, in the format of its suffix.
        size: Width and height in inches.
        paint: Function that draws into the figure.
        overwrite: Whether to replace an existing file.

    Returns:
        A line with the warnings of matplotlib, if there are any.

    Raises:
        UsageError: As `require_drawable`.
    """
    require_drawable(path, overwrite=overwrite)
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style = mpl.rc_params_from_file(STYLE, use_default_template=True)
    with warnings.catch_warnings(record=True) as caught, mpl.rc_context(style):
        warnings.simplefilter("always")
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        kind = _kind(path)
        with replacing(path, overwrite=overwrite) as temporary:
            figure.savefig(temporary, format=kind, metadata=METADATA[kind], dpi=DOTS_PER_INCH)
            if kind == "svg":
                temporary.write_text(slim(temporary.read_text(encoding="utf-8")), encoding="utf-8")
    messages = list(dict.fromkeys(" ".join(str(warning.message).split()).rstrip(".") for warning in caught))
    return [f"matplotlib warns: {listed(messages, 4)}"] if messages else []


def slim(svg: str) -> str:
    """Shorten SVG by a sixth or more: no indentation, coordinates to a hundredth of a point."""
    coordinates = re.compile(r' (?:d|x|y)="[^"]*"')
    digits = re.compile(r"-?\d+\.\d{3,}")
    return coordinates.sub(
        lambda match: digits.sub(lambda number: f"{float(number[0]):.2f}", match[0]), re.sub(r"\n\s+", "\n", svg)
    )


def _kind(path: Path) -> str:
    return path.suffix.lower().removeprefix(".")


COLUMNS = 3
DASHES: dict[str, Any] = {
    "solid": "solid",
    "dashed": (0, (4, 1.6)),
    "dotted": (0, (1, 1)),
    "dash-dot": (0, (6, 1.5, 1, 1.5)),
    "dash-dot-dot": (0, (3, 1, 1, 1, 1, 1)),
}
MARKERS = {
    "circle": "o",
    "square": "s",
    "triangle": "^",
    "diamond": "D",
    "triangle2": "v",
    "cross": "P",
    "star": "*",
}
LEVEL = (0, (1, 2))
MOST_MARKERS, MANY = 40, 1000
"""Points beyond which a curve is drawn without a mark at each of them, and beyond which it is drawn thin."""


def plot(
    records: RecordsSource | Mapping[str, RecordsSource],
    out: Path | str,
    *,
    metrics: str | Sequence[str | Sequence[str]],
    x: str | None = None,
    splits: str | Sequence[str] | None = None,
    log_x: bool = False,
    log_y: bool = False,
    marks: Mapping[float, str] | Sequence[Mark] = (),
    title: str | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Draw metrics against the training step, the position on a path, sparsity or epoch.

    Values at collapse are dotted. Equal records give equal bytes.

    Args:
        records: Records, or files or directories of them or of dumps, which are analyzed. A directory of runs, or of
            groups of runs, has one line per group. A mapping names the conditions: each is one line, or with several
            files the mean of these seeds, with a band from the lowest to the highest value.
        out: File to write; its suffix .svg, .png or .pdf decides the format.
        metrics: Metric of each panel, by name, short label ("MIR") or pattern ("nc1.*"), ignoring case; several in one
            panel are separated by commas, or a sequence.
        x: Quantity on the x axis: "step", "alpha", "sparsity", "epoch" or another name in the records; None for alpha
            if the records have it, else step.
        splits: Splits to draw; all if None.
        log_x: Whether the x axis is logarithmic.
        log_y: Whether the y axes are logarithmic.
        marks: Labels of vertical lines by their position.
        title: Title above the figure.
        overwrite: Whether to replace an existing file.

    Returns:
        Notes on omitted values and on warnings of matplotlib.

    Raises:
        UsageError: If matplotlib is not installed, the suffix is unknown, or there is no metric.
        DataError: If the records cannot be read, do not have a metric, or are not a curve along x.
    """
    out = Path(out)
    require_drawable(out, overwrite=overwrite)
    lines = [Mark(position, label) for position, label in marks.items()] if isinstance(marks, Mapping) else marks
    (conditions, _), panels, splits = conditions_of(records), panels_of(metrics), as_sequence(splits)
    plots, notes = line_plots(
        by_group(conditions, panels), panels, x=x, log_x=log_x, log_y=log_y, splits=splits, marks=lines
    )
    return [*notes, *draw(out, *of_lines(plots, title), overwrite=overwrite)]


def of_lines(plots: Sequence[LinePlot], title: str | None = None) -> tuple[tuple[float, float], Paint]:
    """Return the size of a figure of line plots of a common x axis, panel by panel, and the function that draws it."""
    columns = len(plots) if len(plots) <= COLUMNS else 2 if len(plots) == 4 else COLUMNS
    rows = math.ceil(len(plots) / columns)
    width, height = {1: (4.8, 2.9), 2: (6.8, 2.5)}.get(columns, (7.6, 2.2))

    def paint(figure: "Figure") -> None:
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
        positions = sorted({position for plot in plots for position in plot.positions})
        for number, axes in enumerate(grid.flat):
            if number >= len(plots):
                axes.set_axis_off()
                continue
            _panel(axes, plots[number], positions, beside=columns)
            if number + columns >= len(plots):
                lines = x_label(plots[number].x, narrow=columns == COLUMNS).split("\n")
                axes.set_xlabel("\n".join(map(words, lines)))
                axes.tick_params(labelbottom=True)
        handles = _legend(plots)
        if handles:
            figure.legend(handles=handles, loc="outside lower center", ncols=_fitting(handles, width))
        if title:
            figure.suptitle(words(title))

    return (width, height * rows + 0.4), paint


def words(text: str, most: int = 80) -> str:
    """Escape a text so that matplotlib does not draw it as a formula, and cut it after `most` characters."""
    line = shortened(printable(text), most)
    # $ would open a formula, and keys that begin with a dash below are hidden.
    return (" " if line.startswith("_") else "") + line.replace("$", r"\$")


def _panel(axes: "Axes", plot: LinePlot, positions: Sequence[float], *, beside: int) -> None:
    for line in plot.lines:
        _line(axes, line)
    for level in plot.levels:
        if level.value > 0 or not plot.y.log:
            axes.axhline(level.value, color=level.colour, linewidth=0.9, linestyle=LEVEL, zorder=1.5)
    for x0, y0, x1, y1, colour in plot.chords:
        axes.plot([x0, x1], [y0, y1], color=colour, linewidth=0.9, linestyle=LEVEL, zorder=1.5)
    for span in plot.spans:
        axes.plot([span.x, span.x], [span.low, span.high], color=span.colour, linewidth=1.1, marker="_", markersize=6)
        axes.annotate(
            words(span.label),
            (span.x, span.high),
            xytext=(4, 3),
            textcoords="offset points",
            fontsize=7,
            color="#333333",
        )
    for mark in plot.marks:
        axes.axvline(mark.x, color="#777777", linewidth=0.8, zorder=1.4)
        transform = axes.get_xaxis_transform()
        axes.text(
            mark.x, 1.01, words(mark.label), transform=transform, ha="center", va="bottom", fontsize=7, color="#555555"
        )
    if plot.y.log:
        axes.set_yscale("log", nonpositive="mask")
        _few_powers(axes)
    if plot.y.bounds:
        axes.set_ylim(*plot.y.bounds)
    scale_x(axes, plot.x, positions[-1])
    # If not all names fit, they are written above the panel only.
    axes.set_ylabel(words(plot.y.label if len(plot.y.name) <= 28 else plot.y.unit))
    if len(plot.names) > 1:
        axes.legend(
            handles=[_key(plot, metric) for metric in plot.names],
            loc="lower left",
            bbox_to_anchor=(-0.02, 1.09 if plot.marks else 1.0),
            borderaxespad=0.1,
            ncols=2 if beside == COLUMNS else 3,
            handlelength=1.4,
            columnspacing=1.0,
        )


def _line(axes: "Axes", line: Line) -> None:
    style = line.style
    axes.plot(
        line.x,
        line.y,
        color=style.colour,
        linestyle=DASHES[style.dash],
        marker=MARKERS[style.marker] if len(line.x) <= MOST_MARKERS else None,
        markerfacecolor="white" if style.hollow else style.colour,
        markeredgewidth=0.8,
        linewidth=1.4 if len(line.x) <= MANY else 0.7,
    )
    low, high = (line.low, line.high) if line.seeds > 1 else line.interval
    if low:
        axes.fill_between(line.x, low, high, color=style.colour, alpha=0.16, linewidth=0)


def scale_x(axes: "Axes", x: Axis, last: float) -> None:
    """Set the scale and ticks of the x axis, up to its last position."""
    from matplotlib.ticker import MaxNLocator

    if not x.log:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=x.integer, steps=[1, 2, 2.5, 5, 10]))
        return
    first = x.linear_to
    if first is None:
        axes.set_xscale("log")
        return
    axes.set_xscale("symlog", linthresh=first, linscale=0.5)
    axes.set_xlim(-first * 0.15, last * 1.15)
    axes.set_xticks(x.ticks)
    low = math.ceil(math.log10(first / 10))
    between = [n * 10.0**power for power in range(low, math.floor(math.log10(last)) + 1) for n in range(2, 10)]
    axes.set_xticks([tick for tick in between if first <= tick <= last], minor=True)


def _few_powers(axes: "Axes") -> None:
    # An axis with at most one power of ten gets labels for the values between, as plain numbers.
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator, ScalarFormatter

    low, high = axes.get_ylim()
    axes.yaxis.set_minor_formatter(NullFormatter())
    if high > 100 * low:
        return
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]) if high < 4 * low else LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_locator(NullLocator())


def x_label(x: Axis, *, narrow: bool) -> str:
    """Return the label of the x axis, on two lines if it is `narrow`."""
    if x.log and x.linear_to is not None:
        return f"{x.label}{chr(10) if narrow else ' '}(log; linear from 0 to {x.linear_to:.3g})"
    return x.label


def _key(plot: LinePlot, metric: str) -> Any:
    from matplotlib.lines import Line2D

    mine = [line for line in plot.lines if line.metric == metric]
    style, single = mine[0].style if mine else Style(), len({line.condition for line in plot.lines}) == 1
    return Line2D(
        [],
        [],
        color=style.colour if single else GREY,
        linestyle="solid" if single else "none",
        marker=MARKERS[style.marker],
        label=plot.names[metric],
    )


def _legend(plots: Sequence[LinePlot]) -> list[Any]:
    """Return the legend entries that all panels share: conditions, splits, the band, the value at collapse."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    lines = [line for plot in plots for line in plot.lines]
    handles: list[Any] = []
    colours = {line.condition: line.style.colour for line in lines}
    seeds = {line.condition: line.seeds for line in lines}
    if len(colours) > 1:
        for condition, colour in colours.items():
            several = f" ({seeds[condition]} seeds)" if seeds[condition] > 1 else ""
            handles.append(Line2D([], [], color=colour, linewidth=2.2, label=words(f"{condition}{several}")))
    styles = {line.split: line.style for line in lines if line.split is not None}
    of_splits = [{line.style.colour for line in lines if line.split == split} for split in styles]
    by_colour = (
        len(colours) == 1 and all(len(colour_set) == 1 for colour_set in of_splits) and len(set().union(*of_splits)) > 1
    )
    for split, style in styles.items():
        colour = style.colour if by_colour else GREY
        handles.append(Line2D([], [], color=colour, linestyle=DASHES[style.dash], label=words(str(split))))
    if max(seeds.values()) > 1:
        of = f"of {max(seeds.values())} seeds" if len(seeds) == 1 else "seed"
        handles.append(Patch(color=GREY, alpha=0.2, linewidth=0, label=f"lowest to highest {of}"))
    if any(line.errors for line in lines):
        handles.append(Patch(color=GREY, alpha=0.2, linewidth=0, label="95 % interval"))
    if any(level.value > 0 or not plot.y.log for plot in plots for level in plot.levels):
        handles.append(Line2D([], [], color=GREY, linewidth=0.9, linestyle=LEVEL, label="at collapse"))
    return handles


def _fitting(handles: Sequence[Any], width: float) -> int:
    lengths = [len(str(handle.get_label())) for handle in handles]
    for columns in range(len(lengths), 1, -1):
        # matplotlib fills the first columns with one more entry if the entries cannot be divided evenly.
        rows, more = divmod(len(lengths), columns)
        starts = [number * rows + min(number, more) for number in range(columns + 1)]
        longest = [max(lengths[start:stop]) for start, stop in pairwise(starts)]
        if sum(0.062 * length + 0.5 for length in longest) <= width:
            return columns
    return 1

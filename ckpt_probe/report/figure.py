"""Records → a figure: metrics in panels along a common x, one line a condition, for SVG, PNG or PDF."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt_probe.errors import UsageError, listed
from ckpt_probe.report.canvas import require_drawable, save, styled
from ckpt_probe.report.curves import Curve, Metric, Runs, axis_of, curves, described

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
"""Okabe and Ito's palette, told apart with every kind of colour vision, less its yellow, which is faint on white."""
DASHES = {"train": "solid", "test": (0, (4, 1.6)), None: "solid"}
OTHER_DASHES = ((0, (1, 1)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
SHAPES = "os^Dv<>"
MOST_SHAPES, MANY = 40, 1000
"""Points beyond which a curve is drawn without a mark at each of them, and beyond which it is drawn thin."""


@dataclass(frozen=True)
class Mark:
    """A vertical line at x, with a word above it."""

    x: float
    label: str


def draw(
    series: Mapping[str, Runs],
    path: Path | str,
    *,
    panels: Sequence[Sequence[str]],
    x: str | None = None,
    splits: Sequence[str] | None = None,
    log_x: bool = False,
    log_y: bool = False,
    title: str | None = None,
    marks: Sequence[Mark] = (),
    overwrite: bool = False,
) -> list[str]:
    """Draw records into an SVG, PNG or PDF file, by its suffix; returns what was left out, in words.

    series: for each condition its seeds' records, `{"plain": [records_of_seed_0, records_of_seed_1]}`; several seeds
    are drawn as their mean, with a band from the lowest to the highest. panels: the metrics of each panel. x: "step",
    "alpha", "sparsity", "epoch" or any other name in the records; alpha where there is one, else step, where it is
    None. Values at collapse are dotted. The same records give the same bytes. Raises UsageError where matplotlib is
    not installed or the suffix is another, DataError as `curves`.
    """
    path = Path(path)
    require_drawable(path, overwrite=overwrite)
    shown = [list(dict.fromkeys(panel)) for panel in panels]
    names = list(dict.fromkeys(name for panel in shown for name in panel))
    if not names:
        raise UsageError("a figure needs at least one metric")
    axis = x or axis_of([record for runs in series.values() for records in runs for record in records])
    found, notes = curves(series, names, axis, splits)
    metrics = {name: described(series, name) for name in names}
    with styled() as said:
        plan = _Plan(list(series), found, metrics, axis, log_x, log_y, tuple(marks))
        figure = _figure(plan, shown, title)
        save(figure, path, overwrite=overwrite)
    return [*notes, *plan.unseen(), *said]


@dataclass(frozen=True)
class _Plan:
    """What is drawn, and how each line is told from the others.

    Colour tells conditions, and the shape of points the metrics that share a panel; where there is only one condition,
    colour tells the metrics. Dashes tell splits.
    """

    conditions: Sequence[str]
    curves: Sequence[Curve]
    metrics: Mapping[str, Metric]
    axis: str
    log_x: bool
    log_y: bool
    marks: Sequence[Mark]

    @property
    def splits(self) -> list[str | None]:
        return list(dict.fromkeys(curve.split for curve in self.curves))

    @property
    def positions(self) -> list[float]:
        return [place for curve in self.curves for place in curve.x]

    def colour(self, condition: str, panel: Sequence[str], metric: str) -> Any:
        if len(self.conditions) == 1:
            return _colour(panel.index(metric), len(panel))
        return _colour(self.conditions.index(condition), len(self.conditions))

    def shape(self, panel: Sequence[str], metric: str) -> str:
        return SHAPES[panel.index(metric) % len(SHAPES)] if len(self.conditions) > 1 else "o"

    def dashes(self, split: str | None) -> Any:
        others = [one for one in self.splits if one not in DASHES]
        return DASHES[split] if split in DASHES else OTHER_DASHES[others.index(split) % len(OTHER_DASHES)]

    def unseen(self) -> list[str]:
        """What a logarithmic axis cannot show, in words."""
        if not self.log_y:
            return []
        below = sum(value <= 0 for curve in self.curves for value in curve.mean)
        flat = [metric.label for metric in self.metrics.values() if any(value <= 0 for value in metric.references)]
        notes = [f"{below} values of 0 or less have no place on a logarithmic axis; the line breaks there"]
        return (notes if below else []) + (
            [f"at collapse {listed(flat)} is 0, which has no place on a logarithmic axis"] if flat else []
        )


def _figure(plan: _Plan, panels: Sequence[list[str]], title: str | None) -> "Figure":
    from matplotlib.figure import Figure

    columns = len(panels) if len(panels) <= COLUMNS else 2 if len(panels) == 4 else COLUMNS
    rows = math.ceil(len(panels) / columns)
    width, height = {1: (4.8, 2.9), 2: (6.8, 2.5)}.get(columns, (7.6, 2.2))
    figure = Figure(figsize=(width, height * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for number, axes in enumerate(grid.flat):
        if number >= len(panels):
            axes.set_axis_off()
            continue
        _panel(axes, plan, panels[number], beside=columns)
        if number + columns >= len(panels):
            axes.set_xlabel(_words(_axis_label(plan, narrow=columns == COLUMNS)))
            axes.tick_params(labelbottom=True)
    handles = _legend(plan)
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=_fitting(handles, width))
    if title:
        figure.suptitle(_words(title))
    return figure


def _panel(axes: "Axes", plan: _Plan, panel: list[str], *, beside: int) -> None:
    for curve in plan.curves:
        if curve.metric in panel:
            _line(axes, plan, panel, curve)
    for metric in panel:
        single = len(plan.conditions) == 1 and len(panel) > 1
        for value in plan.metrics[metric].references:
            if value > 0 or not plan.log_y:
                colour = plan.colour(plan.conditions[0], panel, metric) if single else "#444444"
                axes.axhline(value, color=colour, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1.5)
    for mark in plan.marks:
        axes.axvline(mark.x, color="#777777", linewidth=0.8, zorder=1.4)
        place = axes.get_xaxis_transform()
        axes.text(
            mark.x, 1.01, _words(mark.label), transform=place, ha="center", va="bottom", fontsize=7, color="#555555"
        )
    _scales(axes, plan)
    metrics = [plan.metrics[name] for name in panel]
    units = {metric.unit for metric in metrics}
    unit = f" ({units.pop()})" if len(units) == 1 and units != {""} else ""
    named = ", ".join(metric.label for metric in metrics)
    # Where there is no room for all names they stand above the panel only.
    axes.set_ylabel(_words(named + unit if len(named) <= 28 else unit.strip(" ()")))
    if len(panel) > 1:
        axes.legend(
            handles=[_key(plan, panel, metric) for metric in panel],
            loc="lower left",
            bbox_to_anchor=(-0.02, 1.09 if plan.marks else 1.0),
            borderaxespad=0.1,
            ncols=2 if beside == COLUMNS else 3,
            handlelength=1.4,
            columnspacing=1.0,
        )


def _line(axes: "Axes", plan: _Plan, panel: list[str], curve: Curve) -> None:
    colour = plan.colour(curve.condition, panel, curve.metric)
    points = len(curve.x) <= MOST_SHAPES
    shape = plan.shape(panel, curve.metric) if points else None
    hollow = "white" if curve.split not in {"train", None} else colour
    axes.plot(
        curve.x,
        curve.mean,
        color=colour,
        linestyle=plan.dashes(curve.split),
        marker=shape,
        markerfacecolor=hollow,
        markeredgewidth=0.8,
        linewidth=1.4 if len(curve.x) <= MANY else 0.7,
    )
    if curve.seeds > 1:
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.16, linewidth=0)


def _scales(axes: "Axes", plan: _Plan) -> None:
    from matplotlib.ticker import MaxNLocator

    if plan.log_y:
        axes.set_yscale("log", nonpositive="mask")
        _few_powers(axes)
    if not plan.log_x:
        whole = plan.axis in {"step", "epoch"}
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=whole, steps=[1, 2, 2.5, 5, 10]))
        return
    places = sorted(set(plan.positions))
    if places[0] < 0 or places[-1] <= 0:
        raise UsageError(f"--log-x: {plan.axis} goes from {places[0]:g} to {places[-1]:g}; expected values above 0")
    if places[0] > 0:
        axes.set_xscale("log")
        return
    first = next(place for place in places if place > 0)
    axes.set_xscale("symlog", linthresh=first, linscale=0.5)
    axes.set_xlim(-first * 0.15, places[-1] * 1.15)
    axes.set_xticks(_ticks(first, places[-1]))
    between = [tick * n for tick in _ticks(first / 10, places[-1]) for n in range(2, 10)]
    axes.set_xticks([tick for tick in between if first <= tick <= places[-1]], minor=True)


def _few_powers(axes: "Axes") -> None:
    # Where an axis has one power of ten, or none, the values between are named, and plainly.
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator, ScalarFormatter

    low, high = axes.get_ylim()
    axes.yaxis.set_minor_formatter(NullFormatter())
    if high > 100 * low:
        return
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]) if high < 4 * low else LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_locator(NullLocator())


def _ticks(first: float, last: float) -> list[float]:
    """0 and the powers of ten between; the ends where there is none."""
    low, high = math.ceil(math.log10(first)), math.floor(math.log10(last))
    return [0, *(10.0**power for power in range(low, high + 1))] if low <= high else [0, first, last]


def _axis_label(plan: _Plan, *, narrow: bool) -> str:
    names = {"step": "training step", "alpha": "α, position on the path"}
    name = names.get(plan.axis, plan.axis)
    places = sorted(set(plan.positions))
    if plan.log_x and places[0] == 0:
        return f"{name}{chr(10) if narrow else ' '}(log; linear from 0 to {places[1]:.3g})"
    return name


def _key(plan: _Plan, panel: list[str], metric: str) -> Any:
    from matplotlib.lines import Line2D

    single = len(plan.conditions) == 1
    colour = plan.colour(plan.conditions[0], panel, metric) if single else "#444444"
    style = "solid" if single else "none"
    return Line2D(
        [], [], color=colour, linestyle=style, marker=plan.shape(panel, metric), label=plan.metrics[metric].label
    )


def _legend(plan: _Plan) -> list[Any]:
    """Keys of what all panels share: conditions, splits, the band, the value at collapse."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []
    seeds = {curve.condition: curve.seeds for curve in plan.curves}
    if len(plan.conditions) > 1:
        for number, condition in enumerate(plan.conditions):
            colour = _colour(number, len(plan.conditions))
            several = f" ({seeds[condition]} seeds)" if seeds[condition] > 1 else ""
            handles.append(Line2D([], [], color=colour, linewidth=2.2, label=_words(f"{condition}{several}")))
    named = [split for split in plan.splits if split is not None]
    for split in named:
        handles.append(Line2D([], [], color="#444444", linestyle=plan.dashes(split), label=_words(split)))
    if max(seeds.values()) > 1:
        of = f"of {max(seeds.values())} seeds" if len(seeds) == 1 else "seed"
        handles.append(Patch(color="#444444", alpha=0.2, linewidth=0, label=f"lowest to highest {of}"))
    shown = [v for metric in plan.metrics.values() for v in metric.references if v > 0 or not plan.log_y]
    if shown:
        handles.append(Line2D([], [], color="#444444", linewidth=0.9, linestyle=(0, (1, 2)), label="at collapse"))
    return handles


def _fitting(handles: Sequence[Any], width: float) -> int:
    lengths = [len(str(handle.get_label())) for handle in handles]
    for columns in range(len(lengths), 1, -1):
        # As matplotlib fills them: the first columns have one more where the rest is not even.
        rows, more = divmod(len(lengths), columns)
        starts = [number * rows + min(number, more) for number in range(columns + 1)]
        longest = [max(lengths[start:stop]) for start, stop in pairwise(starts)]
        if sum(0.062 * length + 0.5 for length in longest) <= width:
            return columns
    return 1


def _words(text: str) -> str:
    # Not as a formula, which $ would open, nor hidden, as matplotlib does with keys that begin with a dash below.
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def _colour(number: int, count: int) -> Any:
    if count <= len(COLOURS):
        return COLOURS[number]
    from matplotlib import colormaps

    # More than the palette tells apart are taken as ordered, and shaded so.
    return colormaps["cividis"](number / (count - 1) * 0.95)

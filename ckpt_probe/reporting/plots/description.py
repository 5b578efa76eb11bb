"""Describe plots independently of how they are drawn: data, scales, references, names and styles.

The page and matplotlib draw the same descriptions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ckpt_probe.reporting.wording import INTERVAL

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
"""Palette of Okabe and Ito, distinguishable with every kind of colour vision; without yellow, which is faint on white.
"""

ORDERED = ("#00224e", "#173473", "#434e6c", "#62656f", "#7d7c78", "#9a9376", "#bcaf6f", "#dfcd5d")
"""cividis from dark to light, for ordered items, or for more items than the palette has colours."""

MARKERS = ("circle", "square", "triangle", "diamond", "triangle2", "cross", "star")
DASHES = {"train": "solid", "test": "dashed", None: "solid"}
OTHER_DASHES = ("dotted", "dash-dot", "dash-dot-dot")
GREY = "#444444"


@dataclass(frozen=True)
class Style:
    """Style of a line; lines never differ by colour alone. `hollow`: markers are outlines."""

    colour: str = COLOURS[0]
    dash: str = "solid"
    marker: str = "circle"
    hollow: bool = False


@dataclass(frozen=True)
class Axis:
    """Axis of a plot.

    Attributes:
        name: Quantity on the axis.
        unit: Unit, empty for a plain number.
        log: Whether the axis is logarithmic at first.
        linear_to: If a logarithmic axis contains 0, the value up to which it is linear.
        ticks: Positions of the ticks of such an axis.
        integer: Whether only integers have a meaning.
        bounds: Ends of the axis, if they are not those of the data.
    """

    name: str
    unit: str = ""
    log: bool = False
    linear_to: float | None = None
    ticks: tuple[float, ...] = ()
    integer: bool = False
    bounds: tuple[float, float] | None = None

    @property
    def label(self) -> str:
        """Name and unit."""
        return f"{self.name} ({self.unit})" if self.unit else self.name


@dataclass(frozen=True)
class Line:
    """Line of a plot.

    Attributes:
        condition: Name of the run or condition.
        metric: Name of the metric.
        split: Name of the split.
        x: Positions in ascending order.
        y: Values, NaN where the line is interrupted; the mean if there are several seeds.
        style: Style of the line.
        name: Label at the end of the line, if there is room.
        seeds: Number of seeds.
        low: Lowest value over the seeds; empty if it is not known.
        high: Highest value over the seeds.
        errors: Standard errors of the values, NaN where they are unknown; empty if none is known.
    """

    condition: str
    metric: str
    split: str | None
    x: Sequence[float]
    y: Sequence[float]
    style: Style = Style()
    name: str = ""
    seeds: int = 1
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    errors: Sequence[float] = ()

    @property
    def interval(self) -> tuple[list[float], list[float]]:
        """Lower and upper ends of the 95 % intervals, NaN where the error is unknown; empty without errors."""
        pairs = list(zip(self.y, self.errors, strict=True)) if self.errors else []
        return [y - INTERVAL * error for y, error in pairs], [y + INTERVAL * error for y, error in pairs]


@dataclass(frozen=True)
class Level:
    """Reference value for lines, drawn as a dotted horizontal line."""

    value: float
    name: str
    colour: str = GREY


@dataclass(frozen=True)
class Mark:
    """Vertical line at x with a label above it."""

    x: float
    label: str


@dataclass(frozen=True)
class Span:
    """Vertical distance from `low` to `high` at x, with a name, and a label that includes its size."""

    x: float
    low: float
    high: float
    name: str
    label: str
    colour: str = GREY


@dataclass(frozen=True)
class Described:
    """Plot or table of a report.

    Attributes:
        key: Name of the plot, unique in a report.
        title: Title.
        meaning: One sentence that explains the plot.
    """

    key: str
    title: str
    meaning: str


@dataclass(frozen=True)
class LinePlot(Described):
    """Plot of lines along a common x.

    Attributes:
        x: Horizontal axis.
        y: Vertical axis.
        lines: The lines.
        names: Labels of the metrics by their names in the records.
        levels: Reference values.
        marks: Vertical lines.
        spans: Distances that are drawn, such as barriers.
        chords: Dotted straight lines: x and y of one end, x and y of the other, colour.
    """

    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    names: dict[str, str]
    levels: tuple[Level, ...] = ()
    marks: tuple[Mark, ...] = ()
    spans: tuple[Span, ...] = ()
    chords: tuple[tuple[float, float, float, float, str], ...] = ()

    @property
    def positions(self) -> list[float]:
        """All positions on the x axis, in order."""
        return sorted({position for line in self.lines for position in line.x})


@dataclass(frozen=True)
class Frames:
    """Arrays of one run and split, one for each checkpoint.

    Attributes:
        run: Name of the run.
        split: Name of the split.
        checkpoints: Indices (T,) of the checkpoints in the run.
        values: The arrays, shape (T, …).
    """

    run: str
    split: str
    checkpoints: tuple[int, ...]
    values: np.ndarray


@dataclass(frozen=True)
class MatrixPlot(Described):
    """Matrices of cosines or similarities.

    Attributes:
        frames: Matrices (T, b, b) of each run and split.
        labels: Names (b,) of the rows, by run.
        off_diagonal: Value of all cosines of different classes at collapse, by run.
        unit: Quantity of the values, which lie between −1 and 1.
        rows: Plural noun for the rows.
        of_run: Whether a matrix belongs to the entire run, not to one checkpoint.
    """

    frames: tuple[Frames, ...]
    labels: dict[str, tuple[str, ...]]
    off_diagonal: dict[str, float]
    unit: str = "cosine"
    rows: str = "classes"
    of_run: bool = False


@dataclass(frozen=True)
class LayerMap(Described):
    """Heat map of a number by layer and checkpoint, or by other rows and columns.

    Attributes:
        frames: Values (1, L, T) of each run and split, NaN for a missing one.
        layers: Names (L,) of the layers, by run.
        columns: Names (T,) of the checkpoints, by run.
        log: Whether colours follow the logarithm.
        rows: Plural noun for the rows.
        across: Noun for the columns; empty if they are the checkpoints of the slider.
    """

    frames: tuple[Frames, ...]
    layers: dict[str, tuple[str, ...]]
    columns: dict[str, tuple[str, ...]]
    log: bool = False
    rows: str = "layers"
    across: str = ""


@dataclass(frozen=True)
class SpectrumPlot(Described):
    """Eigenvalues of a Gram matrix at some ranks.

    Attributes:
        ranks: Ranks (r,), from 1.
        frames: Eigenvalues (T, r) of each run and split, NaN beyond the length of the spectrum.
        at_collapse: Number of equal eigenvalues at collapse, by run.
    """

    ranks: tuple[int, ...]
    frames: tuple[Frames, ...]
    at_collapse: dict[str, int]


@dataclass(frozen=True)
class Column:
    """Column of a table of classes: name in the record, heading, meaning, and index of its standard errors, or −1."""

    name: str
    label: str
    meaning: str
    error: int = -1


@dataclass(frozen=True)
class ClassTable(Described):
    """Table of numbers by class.

    Attributes:
        columns: The columns.
        frames: Values (T, C, columns and then their standard errors) of each run and split, NaN for a missing one.
        labels: Names (C,) of the classes, by run.
        nearest: For each of `frames`, each checkpoint and each class: the class means nearest to its samples, as text.
    """

    columns: tuple[Column, ...]
    frames: tuple[Frames, ...]
    labels: dict[str, tuple[str, ...]]
    nearest: tuple[tuple[tuple[str, ...], ...], ...]


@dataclass(frozen=True)
class TableRows:
    """Rows of a table of one run and split ("" for all).

    Attributes:
        run: Name of the run.
        split: Name of the split.
        summary: A sentence on all rows, of which the table may have the first.
        cells: Cells of each row, in the order of the columns.
        pictures: A small picture for each row, shape (n, h, w, 3), uint8, or None.
    """

    run: str
    split: str
    summary: str
    cells: tuple[tuple[str | float, ...], ...]
    pictures: np.ndarray | None = None


@dataclass(frozen=True)
class RowTable(Described):
    """Table of rows that have no class and no checkpoint: examples, or pairs of runs.

    Attributes:
        columns: Headings of the columns.
        tables: Rows of each run and split.
    """

    columns: tuple[str, ...]
    tables: tuple[TableRows, ...]


@dataclass(frozen=True)
class PlanePoint:
    """Checkpoint in a plane: its name, coordinates, and label."""

    name: str
    x: float
    y: float
    label: str


@dataclass(frozen=True)
class ContourPlot(Described):
    """Contours of the loss over a plane.

    Attributes:
        x: Horizontal axis.
        y: Vertical axis.
        xs: Coordinates (n,) of the grid along x.
        ys: Coordinates (m,) of the grid along y.
        values: Loss (m, n), NaN for a missing one.
        levels: Levels in ascending order, evenly spaced in the logarithm; empty if the loss is the same everywhere.
        unit: Unit of the loss.
        points: Checkpoints in the plane.
        joined: Whether the points are the stations of one route, in order.
    """

    x: Axis
    y: Axis
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    values: np.ndarray
    levels: tuple[float, ...]
    unit: str
    points: tuple[PlanePoint, ...]
    joined: bool = False


@dataclass(frozen=True)
class Bar:
    """Interval of an event: row of its metric, kind, ends on the x axis, and a sentence about it."""

    row: str
    kind: str
    start: float
    stop: float
    label: str


@dataclass(frozen=True)
class IntervalPlot(Described):
    """Intervals of events, one row for each metric.

    Attributes:
        x: Horizontal axis.
        rows: Names of the rows, the metric with the earliest onset first.
        bars: The intervals.
    """

    x: Axis
    rows: tuple[str, ...]
    bars: tuple[Bar, ...]


Plot = LinePlot | MatrixPlot | LayerMap | SpectrumPlot | ClassTable | RowTable | ContourPlot | IntervalPlot


def evenly(count: int, most: int) -> list[int]:
    """Return the indices of at most `most` of `count` items, evenly spaced from the first to the last."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist() if count else []


def colour_of(index: int, count: int) -> str:
    """Return the colour of one of `count` items: one of the palette, or a shade of `ORDERED` if they are more."""
    if count <= len(COLOURS):
        return COLOURS[index]
    position = index / (count - 1) * (len(ORDERED) - 1)
    low = min(int(position), len(ORDERED) - 2)
    ends = [[int(ORDERED[i][at : at + 2], 16) for at in (1, 3, 5)] for i in (low, low + 1)]
    mixed = [round(a + (b - a) * (position - low)) for a, b in zip(*ends, strict=True)]
    return "#" + "".join(f"{value:02X}" for value in mixed)

"""What a plot shows, decided once: data, scales, references, names and styles; the page and matplotlib only draw it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
"""Okabe and Ito's palette, told apart with every kind of colour vision, less its yellow, which is faint on white."""

ORDERED = (
    "#00224e",
    "#173473",
    "#434e6c",
    "#62656f",
    "#7d7c78",
    "#9a9376",
    "#bcaf6f",
    "#dfcd5d",
)
"""cividis, dark to light: for what is in an order, or is more than the palette tells apart."""

MARKERS = ("circle", "square", "triangle", "diamond", "triangle2", "cross", "star")
DASHES = {"train": "solid", "test": "dashed", None: "solid"}
OTHER_DASHES = ("dotted", "dash-dot", "dash-dot-dot")
GREY = "#444444"


@dataclass(frozen=True)
class Style:
    """How a line is told from others: never by its colour alone. `hollow`: its marks are outlines."""

    colour: str = COLOURS[0]
    dash: str = "solid"
    marker: str = "circle"
    hollow: bool = False


@dataclass(frozen=True)
class Axis:
    """What an axis measures, its unit, and its scale.

    log: whether it is logarithmic, at first. linear_to: where a logarithmic axis has to hold 0 it is linear from there
    to this. ticks: where an axis of that kind has them. whole: only whole numbers mean anything. bounds: its ends,
    where they are not those of the data.
    """

    name: str
    unit: str = ""
    log: bool = False
    linear_to: float | None = None
    ticks: tuple[float, ...] = ()
    whole: bool = False
    bounds: tuple[float, float] | None = None

    @property
    def label(self) -> str:
        """Name and unit."""
        return f"{self.name} ({self.unit})" if self.unit else self.name


@dataclass(frozen=True)
class Line:
    """One line: what it is of, values y along x (NaN where it is broken), over several seeds the lowest and highest.

    name: what stands at its end, where there is room.
    """

    condition: str
    metric: str
    split: str | None
    x: Sequence[float]
    y: Sequence[float]
    style: Style
    name: str = ""
    seeds: int = 1
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Level:
    """A value that lines are held against: a horizontal line, dotted."""

    value: float
    name: str
    colour: str = GREY


@dataclass(frozen=True)
class Mark:
    """A vertical line at x, with a word above it."""

    x: float
    label: str


@dataclass(frozen=True)
class Span:
    """How far a line rises above another at x: a measure from `low` to `high`; what it is of, and that with how far."""

    x: float
    low: float
    high: float
    name: str
    label: str
    colour: str = GREY


@dataclass(frozen=True)
class LinePlot:
    """Lines along a common x. names: of the metrics, by their name in the records. meaning: one sentence for a person.

    key names the plot within a report. chords: straight lines that spans are measured from, dotted.
    """

    key: str
    title: str
    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    names: dict[str, str]
    meaning: str = ""
    levels: tuple[Level, ...] = ()
    marks: tuple[Mark, ...] = ()
    spans: tuple[Span, ...] = ()
    chords: tuple[tuple[float, float, float, float, str], ...] = ()
    """x, y of one end, x, y of the other, colour."""

    @property
    def positions(self) -> list[float]:
        """Every place on the x axis, in order."""
        return sorted({place for line in self.lines for place in line.x})


@dataclass(frozen=True)
class Frames:
    """One picture a checkpoint, of one run and split: checkpoints (T,) by their number in the run, values (T, …)."""

    run: str
    split: str
    checkpoints: tuple[int, ...]
    values: np.ndarray


@dataclass(frozen=True)
class MatrixPlot:
    """Cosines between rows, (T, b, b) for each run and split; `labels` (b,) name the rows of each run's matrices.

    off_diagonal: the value of all cosines of different classes at collapse, by run. unit: what else a value is, from
    −1 to 1; rows: what the rows are. whole: whether a matrix is of a run as a whole, and not of one checkpoint.
    """

    key: str
    title: str
    meaning: str
    frames: tuple[Frames, ...]
    labels: dict[str, tuple[str, ...]]
    off_diagonal: dict[str, float]
    unit: str = "cosine"
    rows: str = "classes"
    whole: bool = False


@dataclass(frozen=True)
class LayerMap:
    """A number by layer and checkpoint, (1, L, T) for each run and split, NaN where there is none.

    layers (L,) and columns (T,) name both by run. log: whether colours follow the logarithm.
    """

    key: str
    title: str
    meaning: str
    frames: tuple[Frames, ...]
    layers: dict[str, tuple[str, ...]]
    columns: dict[str, tuple[str, ...]]
    log: bool = False


@dataclass(frozen=True)
class SpectrumPlot:
    """Eigenvalues of one Gram at some ranks, (T, r) for each run and split, NaN beyond the spectrum's own length.

    ranks (r,), from 1. at_collapse: by run, how many equal eigenvalues there are then.
    """

    key: str
    title: str
    meaning: str
    ranks: tuple[int, ...]
    frames: tuple[Frames, ...]
    at_collapse: dict[str, int]


@dataclass(frozen=True)
class Column:
    """One number a class in a table: its name in the record, a heading, what it means."""

    name: str
    label: str
    meaning: str


@dataclass(frozen=True)
class ClassTable:
    """Numbers by class, (T, C, columns) for each run and split; NaN where there is none. labels (C,) by run.

    nearest: for each frame of each of `frames` and each class, in words, the class means nearest to its samples.
    """

    key: str
    title: str
    meaning: str
    columns: tuple[Column, ...]
    frames: tuple[Frames, ...]
    labels: dict[str, tuple[str, ...]]
    nearest: tuple[tuple[tuple[str, ...], ...], ...]


@dataclass(frozen=True)
class Place:
    """A checkpoint in a plane."""

    name: str
    x: float
    y: float
    label: str


@dataclass(frozen=True)
class ContourPlot:
    """The loss over a plane: xs (n,), ys (m,), values (m, n), NaN where there is none; levels in ascending order.

    The levels are spaced evenly in the logarithm; none where the loss is the same everywhere.
    """

    key: str
    title: str
    meaning: str
    x: Axis
    y: Axis
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    values: np.ndarray
    levels: tuple[float, ...]
    unit: str
    places: tuple[Place, ...]


Plot = LinePlot | MatrixPlot | LayerMap | SpectrumPlot | ClassTable | ContourPlot


def colour_of(number: int, count: int) -> str:
    """The colour of one of `count`: the palette's, or in more than that a shade of an order."""
    if count <= len(COLOURS):
        return COLOURS[number]
    place = number / (count - 1) * (len(ORDERED) - 1)
    low = min(int(place), len(ORDERED) - 2)
    ends = [[int(ORDERED[i][at : at + 2], 16) for at in (1, 3, 5)] for i in (low, low + 1)]
    mixed = [round(a + (b - a) * (place - low)) for a, b in zip(*ends, strict=True)]
    return "#" + "".join(f"{value:02X}" for value in mixed)

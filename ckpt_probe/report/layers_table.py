"""One metric by layer and step: layers in rows, the checkpoints of a series in columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from ckpt_probe.errors import DataError, listed, printable
from ckpt_probe.report.table import MISSING, PADDING, short_number

Record = Mapping[str, Any]
CELL = 9
"""Characters of the longest number that is shown."""


@dataclass(frozen=True)
class Grid:
    """Values of a metric on one split: `values[i][j]` of layer i, whose depth is `depths[i]`, at column j; or None."""

    split: str
    metric: str
    layers: tuple[str, ...]
    depths: tuple[float, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]


def grids_of(records: Sequence[Record], metric: str) -> list[Grid]:
    """A grid for each split of records that have layers, layers and columns in the order in which they come.

    Columns are named by their step, by the checkpoint where steps are missing or the same. Raises DataError where no
    record has a layer, or none has a number for the metric.
    """
    layered = [record for record in records if record.get("layer") is not None]
    if not layered:
        raise DataError("no layers in these dumps; extract them again with --layers all --overwrite")
    known = [name for record in layered for name, value in record.items() if isinstance(value, float)]
    if metric not in known:
        names = listed(sorted(set(known) - {"depth"}), 40)
        raise DataError(f"no layer has a number {metric!r}; there are: {names}")
    steps = [record.get("step") for record in layered]
    by_step = None not in steps and len(set(steps)) == len({record["checkpoint"] for record in layered})
    named = "step" if by_step else "checkpoint"
    return [_grid(layered, split, metric, named) for split in dict.fromkeys(record["split"] for record in layered)]


def grid_table(grid: Grid, width: int | None = None) -> Table:
    """A grid for a terminal of `width` characters; where not all columns fit, evenly chosen ones, and how many more."""
    longest = max(len(layer) for layer in grid.layers)
    cell = max(CELL, *(len(column) for column in grid.columns)) + PADDING
    most = len(grid.columns) if width is None else max(1, (width - longest - len("depth") - 2 * PADDING) // cell)
    chosen = evenly(len(grid.columns), most)
    table = Table(box=None, pad_edge=False, padding=(0, PADDING, 0, 0), header_style="bold", show_edge=False)
    table.add_column("layer", no_wrap=True)
    table.add_column("depth", justify="right", no_wrap=True)
    for place in chosen:
        table.add_column(Text(printable(grid.columns[place])), justify="right", no_wrap=True)
    for layer, depth, row in zip(grid.layers, grid.depths, grid.values, strict=True):
        cells = [MISSING if row[place] is None else short_number(float(row[place] or 0)) for place in chosen]
        table.add_row(*map(Text, [printable(layer), f"{depth:.2f}", *cells]))
    hidden = len(grid.columns) - len(chosen)
    if hidden:
        table.caption, table.caption_justify = Text(f"{hidden} more columns with --wide or --csv", style="dim"), "left"
    return table


def grid_records(grids: Sequence[Grid]) -> list[dict[str, Any]]:
    """The rows of grids as flat records: split, layer, depth, and a value under the name of each column."""
    return [
        {"split": grid.split, "layer": layer, "depth": depth, **dict(zip(grid.columns, row, strict=True))}
        for grid in grids
        for layer, depth, row in zip(grid.layers, grid.depths, grid.values, strict=True)
    ]


def _grid(records: Sequence[Record], split: str, metric: str, named: str) -> Grid:
    mine = [record for record in records if record["split"] == split]
    depths = {record["layer"]: float(record["depth"]) for record in mine}
    layers = sorted(depths, key=lambda layer: depths[layer])
    columns = list(dict.fromkeys(str(record[named]) for record in mine))
    held = {(record["layer"], str(record[named])): record.get(metric) for record in mine}
    values = tuple(tuple(held.get((layer, column)) for column in columns) for layer in layers)
    return Grid(split, metric, tuple(layers), tuple(depths[layer] for layer in layers), tuple(columns), values)


def evenly(count: int, most: int) -> list[int]:
    """Places of at most so many of `count` columns, the first and the last among them."""
    if count <= most:
        return list(range(count))
    if most == 1:
        return [count - 1]
    return sorted({round(place * (count - 1) / (most - 1)) for place in range(most)})

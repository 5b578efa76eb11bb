"""One metric by layer and step: layers in rows, the checkpoints of a series in columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ckpt_probe.errors import DataError, listed, printable
from ckpt_probe.report.table import MISSING, PADDING, short_number

Record = Mapping[str, Any]


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


def grid_table(grid: Grid, width: int | None = None) -> Group:
    """Return a grid as a table for a terminal of `width` characters, in blocks where not all columns fit."""
    rows = [
        [printable(layer), f"{depth:.2f}", *(MISSING if value is None else short_number(float(value)) for value in row)]
        for layer, depth, row in zip(grid.layers, grid.depths, grid.values, strict=True)
    ]
    return blocks_of_columns(("layer", "depth"), [printable(column) for column in grid.columns], rows, width)


def blocks_of_columns(
    heads: Sequence[str], columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None
) -> Group:
    """Return tables one below the other, which together have every column and each of which fits `width` characters.

    Args:
        heads: Titles of the columns that every block repeats; those after the first are aligned to the right.
        columns: Titles of the other columns.
        rows: Texts of the cells, those of `heads` and `columns` in this order.
        width: Characters of a line, or None for one block of any width.
    """
    texts = [[*heads, *columns], *rows]
    widths = [max(map(cell_len, cells)) + PADDING for cells in zip(*texts, strict=True)]
    blocks: list[list[int]] = []
    room = 0
    for place in range(len(heads), len(widths)):
        if not blocks or (width is not None and widths[place] > room + PADDING):
            blocks.append([])
            room = (width or 0) - sum(widths[: len(heads)])
        blocks[-1].append(place)
        room -= widths[place]
    return Group(*(_block([*range(len(heads)), *block], texts) for block in blocks))


def _block(places: Sequence[int], texts: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, PADDING, 0, 0), header_style="bold", show_edge=False)
    for place in places:
        table.add_column(Text(texts[0][place]), justify="right" if place else "left", no_wrap=True)
    for row in texts[1:]:
        # As plain text: names in a file may look like markup.
        table.add_row(*(Text(row[place]) for place in places))
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

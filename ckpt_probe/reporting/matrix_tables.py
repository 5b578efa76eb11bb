"""Tables of matrices in blocks of columns: one metric by layer and step, and similarities."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Group
from rich.table import Table

from ckpt_probe.analysis.entries import GROUP_AND_SEED
from ckpt_probe.analysis.records import metric_names
from ckpt_probe.errors import DataError, printable
from ckpt_probe.moments.selection import find_metrics, suggest_metrics
from ckpt_probe.reporting.table import PADDING, add_row, plain_table
from ckpt_probe.reporting.wording import MISSING, Record, error_of, number_with_error

FUNCTION_TITLES = {
    "disagreement": "share of rows predicted differently",
    "divergence": "Jensen–Shannon divergence of predictions (nats)",
    "error_agreement": "share of common errors in one wrong class",
}
"""Titles of measures of `function_similarity`."""


@dataclass(frozen=True)
class Grid:
    """Values of a metric on one split: `values[i][j]` of layer i, at depth `depths[i]`, in column j, or None.

    `errors` has the standard errors in the same places.
    """

    split: str
    metric: str
    layers: tuple[str, ...]
    depths: tuple[float, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    errors: tuple[tuple[float | None, ...], ...] = ()


def grids_of(records: Sequence[Record], metric: str) -> list[Grid]:
    """Arrange the records of layers in one grid per split, with layers in order of depth.

    Columns are named by their step, or by their checkpoint if steps are missing or equal.

    Args:
        records: Records of dumps with several layers.
        metric: Name of the metric, or its short label, ignoring case.

    Returns:
        One grid per split.

    Raises:
        DataError: If no record has a layer, or no record has a number for the metric.
    """
    layered = [record for record in records if record.get("layer") is not None]
    if not layered:
        raise DataError("no layers in these dumps; extract them again with `layers='all'` and `overwrite=True`")
    known = metric_names(layered)
    metric = find_metrics(metric, known)[0]
    if metric not in known:
        raise DataError(f"no layer has a number {metric!r}{suggest_metrics(metric, known)}")
    steps = [record.get("step") for record in layered]
    by_step = None not in steps and len(set(steps)) == len({record["checkpoint"] for record in layered})
    named = "step" if by_step else "checkpoint"
    return [_grid(layered, split, metric, named) for split in dict.fromkeys(map(_split_of, layered))]


def grid_table(grid: Grid, width: int | None = None) -> Group:
    """Return a grid as a table for a terminal of `width` characters, in blocks if not all columns fit."""
    errors = grid.errors or [[None] * len(row) for row in grid.values]
    rows = [
        [printable(layer), f"{depth:.2f}", *(number_with_error(value, error) for value, error in cells)]
        for layer, depth, cells in zip(grid.layers, grid.depths, map(zip, grid.values, errors), strict=True)
    ]
    return blocks_of_columns(("layer", "depth"), [printable(column) for column in grid.columns], rows, width)


def blocks_of_columns(
    heads: Sequence[str], columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None
) -> Group:
    """Return a table as blocks of columns, one below the other, each of which fits `width` characters.

    Args:
        heads: Titles of the columns that every block repeats; all but the first are aligned to the right.
        columns: Titles of the other columns.
        rows: Texts of the cells, in the order of `heads` and `columns`.
        width: Characters of a line, or None for one block of any width.
    """
    texts = [[*heads, *columns], *rows]
    widths = [max(map(cell_len, cells)) + PADDING for cells in zip(*texts, strict=True)]
    blocks: list[list[int]] = []
    room = 0
    for column in range(len(heads), len(widths)):
        if not blocks or (width is not None and widths[column] > room + PADDING):
            blocks.append([])
            room = (width or 0) - sum(widths[: len(heads)])
        blocks[-1].append(column)
        room -= widths[column]
    return Group(*(_block([*range(len(heads)), *block], texts) for block in blocks))


def _block(indices: Sequence[int], texts: Sequence[Sequence[str]]) -> Table:
    table = plain_table((texts[0][index], index == 0) for index in indices)
    for row in texts[1:]:
        add_row(table, (row[index] for index in indices))
    return table


def grid_records(grids: Sequence[Grid]) -> list[dict[str, Any]]:
    """Convert grids to flat records: split, layer, depth, and the value of each column by its name."""
    return [
        {"split": grid.split, "layer": layer, "depth": depth, **dict(zip(grid.columns, row, strict=True))}
        for grid in grids
        for layer, depth, row in zip(grid.layers, grid.depths, grid.values, strict=True)
    ]


def _split_of(record: Record) -> str:
    """Return the split of a record, after its group and seed if it has these."""
    return " ".join(
        ["/".join(str(record[name]) for name in GROUP_AND_SEED if name in record), str(record["split"])]
    ).strip()


def _grid(records: Sequence[Record], split: str, metric: str, named: str) -> Grid:
    of_split = [record for record in records if _split_of(record) == split]
    depths = {record["layer"]: float(record["depth"]) for record in of_split}
    layers = sorted(depths, key=lambda layer: depths[layer])
    columns = list(dict.fromkeys(str(record[named]) for record in of_split))
    by_cell = {(record["layer"], str(record[named])): record for record in of_split}
    rows = [[by_cell.get((layer, column), {}) for column in columns] for layer in layers]
    values = tuple(tuple(record.get(metric) for record in row) for row in rows)
    errors = tuple(tuple(error_of(record, metric) for record in row) for row in rows)
    return Grid(split, metric, tuple(layers), tuple(depths[layer] for layer in layers), tuple(columns), values, errors)


def similarity_table(matrix: Record, width: int | None = None) -> Group:
    """Return the record of a matrix as a table for a terminal of `width` characters, in blocks of columns if needed."""
    rows = [
        [printable(name), *(MISSING if value is None else _short_share(value) for value in row)]
        for name, row in zip(matrix["rows"], matrix["values"], strict=True)
    ]
    head = {"steps": "step", "runs": "run"}.get(matrix["kind"], "layer")
    return blocks_of_columns((head,), [printable(name) for name in matrix["columns"]], rows, width)


def similarity_title(matrix: Record) -> str:
    """Return a one-line title for the record of a matrix."""
    kind, measure, checkpoint = matrix["kind"], matrix["measure"], matrix.get("checkpoint")
    title, about = measure.upper(), "checkpoints" if kind == "steps" else "last checkpoints of runs"
    if measure in FUNCTION_TITLES:
        title = FUNCTION_TITLES[measure]
    elif kind == "steps":
        about = f"layer {matrix['layer']} by step"
    else:
        about = f"layers of {checkpoint}" + (f" (rows) and {matrix['other']} (columns)" if kind == "models" else "")
    return printable(f"{matrix['split']}: {title}, {about}, {matrix['samples']} rows")


def similarity_values(matrices: Iterable[Record]) -> list[dict[str, Any]]:
    """Return a record for each value of each matrix: identity of the matrix, row, column, value."""
    names = ("kind", "measure", "split", "checkpoint", "step", "layer", "other")
    return [
        {**{key: matrix.get(key) for key in names}, "row": name, "column": column, "value": value}
        for matrix in matrices
        for name, row in zip(matrix["rows"], matrix["values"], strict=True)
        for column, value in zip(matrix["columns"], row, strict=True)
    ]


def _short_share(value: float) -> str:
    return f"{value:.3f}" if value == 0 or abs(value) >= 5e-3 else f"{value:.1e}"

"""Matrices of similarity as tables, JSON Lines and CSV."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from ckpt_probe.analysis import Similarity
from ckpt_probe.errors import printable
from ckpt_probe.report.layers_table import evenly
from ckpt_probe.report.lines import to_csv, to_json_line
from ckpt_probe.report.table import MISSING, PADDING

CELL = len("-0.000")


def similarity_table(matrix: Similarity, width: int | None = None) -> Table:
    """A matrix for a terminal of `width` characters; where not all columns fit, some of them, and how many more."""
    longest = max(len(name) for name in matrix.rows)
    cell = max(CELL, *(len(name) for name in matrix.columns)) + PADDING
    most = len(matrix.columns) if width is None else max(1, (width - longest - PADDING) // cell)
    chosen = evenly(len(matrix.columns), most)
    table = Table(box=None, pad_edge=False, padding=(0, PADDING, 0, 0), header_style="bold", show_edge=False)
    table.add_column("step" if matrix.kind == "steps" else "layer", no_wrap=True)
    for place in chosen:
        table.add_column(Text(printable(matrix.columns[place])), justify="right", no_wrap=True)
    for name, row in zip(matrix.rows, matrix.values, strict=True):
        values = [row[place] for place in chosen]
        table.add_row(*map(Text, [printable(name), *(MISSING if v is None else f"{v:.3f}" for v in values)]))
    hidden = len(matrix.columns) - len(chosen)
    if hidden:
        table.caption, table.caption_justify = Text(f"{hidden} more columns with --wide or --csv", style="dim"), "left"
    return table


def similarity_title(matrix: Similarity) -> str:
    """What a matrix shows, in one line."""
    about = {
        "layers": f"layers of {matrix.checkpoint}",
        "steps": f"layer {matrix.layer} by step",
        "models": f"layers of {matrix.checkpoint} (rows) and {matrix.other} (columns)",
    }[matrix.kind]
    return printable(f"{matrix.split}: {matrix.measure.upper()}, {about}, {matrix.samples} rows")


def similarities_json(matrices: Sequence[Similarity]) -> str:
    """One JSON object a matrix and line."""
    return "".join(to_json_line(matrix.to_record()) + "\n" for matrix in matrices)


def similarities_csv(matrices: Sequence[Similarity]) -> str:
    """One value a line: which matrix it is of, its row, its column and itself."""
    lines = []
    for matrix in matrices:
        names = ("kind", "measure", "split", "checkpoint", "step", "layer", "other")
        place = {name: getattr(matrix, name) for name in names}
        for name, row in zip(matrix.rows, matrix.values, strict=True):
            cells = zip(matrix.columns, row, strict=True)
            lines += [{**place, "row": name, "column": column, "value": value} for column, value in cells]
    return to_csv(lines)

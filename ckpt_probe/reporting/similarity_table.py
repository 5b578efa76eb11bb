"""Similarity matrices as tables, JSON Lines and CSV."""

from collections.abc import Sequence

from rich.console import Group

from ckpt_probe.analysis import Similarity
from ckpt_probe.errors import printable
from ckpt_probe.reporting.layers_table import blocks_of_columns
from ckpt_probe.reporting.lines import to_csv, to_json_line
from ckpt_probe.reporting.table import MISSING

FUNCTION_TITLES = {
    "disagreement": "share of rows predicted differently",
    "divergence": "Jensen–Shannon divergence of predictions (nats)",
    "error_agreement": "share of common errors in one wrong class",
}
"""Titles of measures of `function_similarity`."""


def similarity_table(matrix: Similarity, width: int | None = None) -> Group:
    """Return a matrix as a table for a terminal of `width` characters, in blocks if not all columns fit."""
    rows = [
        [printable(name), *(MISSING if value is None else _short(value) for value in row)]
        for name, row in zip(matrix.rows, matrix.values, strict=True)
    ]
    head = {"steps": "step", "runs": "run"}.get(matrix.kind, "layer")
    return blocks_of_columns((head,), [printable(name) for name in matrix.columns], rows, width)


def similarity_title(matrix: Similarity) -> str:
    """Return a one-line title of a matrix."""
    if matrix.measure in FUNCTION_TITLES:
        between = "checkpoints" if matrix.kind == "steps" else "last checkpoints of runs"
        return f"{printable(matrix.split)}: {FUNCTION_TITLES[matrix.measure]}, {between}, {matrix.samples} rows"
    about = {
        "layers": f"layers of {matrix.checkpoint}",
        "steps": f"layer {matrix.layer} by step",
        "models": f"layers of {matrix.checkpoint} (rows) and {matrix.other} (columns)",
    }[matrix.kind]
    return printable(f"{matrix.split}: {matrix.measure.upper()}, {about}, {matrix.samples} rows")


def similarities_json(matrices: Sequence[Similarity]) -> str:
    """Return JSON Lines with one object per matrix."""
    return "".join(to_json_line(matrix.to_record()) + "\n" for matrix in matrices)


def similarities_csv(matrices: Sequence[Similarity]) -> str:
    """Return CSV with one line per value: identity of the matrix, row, column, value."""
    lines = []
    for matrix in matrices:
        names = ("kind", "measure", "split", "checkpoint", "step", "layer", "other")
        identity = {name: getattr(matrix, name) for name in names}
        for name, row in zip(matrix.rows, matrix.values, strict=True):
            cells = zip(matrix.columns, row, strict=True)
            lines += [{**identity, "row": name, "column": column, "value": value} for column, value in cells]
    return to_csv(lines)


def _short(value: float) -> str:
    return f"{value:.3f}" if value == 0 or abs(value) >= 5e-3 else f"{value:.1e}"

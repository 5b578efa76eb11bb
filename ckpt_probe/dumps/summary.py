"""Render a dump for a notebook: its origin and the arrays of each split."""

from typing import TYPE_CHECKING

import numpy as np

from ckpt_probe.dumps import schema
from ckpt_probe.notebook import sparkline, table, text

if TYPE_CHECKING:
    from ckpt_probe.dumps.reading import Dump

MOST_CLASSES = 200
"""Largest number of classifier rows in the sparkline, which is 120 pixels wide."""


def to_html(dump: "Dump", *, closed: bool) -> str:
    """Return a table of a dump's arrays with a sparkline of the lengths of the classifier's rows; read no row."""
    rows = []
    if dump.weights is not None:
        lengths = np.linalg.norm(dump.weights[:MOST_CLASSES], axis=1)
        known = [float(length) if np.isfinite(length) else None for length in lengths]
        line = sparkline(known, f"length of the classifier's rows of {len(known)} classes")
        rows.append([text(f"{schema.CLASSIFIER}/{schema.WEIGHTS}"), text(dump.weights.shape), text("float64"), line])
    if dump.bias is not None:
        rows.append([text(f"{schema.CLASSIFIER}/{schema.BIAS}"), text(dump.bias.shape), text("float64"), ""])
    for split in () if closed else dump.splits:
        for name, array in dump[split].arrays().items():
            rows.append([text(f"{split}/{name}"), text(tuple(array.shape)), text(array.dtype), ""])
    return table(_caption(dump, closed), ["array", "shape", "dtype", "‖row‖ by class"], rows)


def _caption(dump: "Dump", closed: bool) -> str:
    step = "" if dump.step is None else f", step {dump.step}"
    source = "" if dump.provenance is None else f"; {dump.provenance.model} on {dump.provenance.data}"
    shut = f"; closed (it had {', '.join(dump.splits)})" if closed else ""
    return f"dump {dump.name}{step}{source}{shut}"

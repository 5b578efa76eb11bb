"""A dump as a notebook shows it: where it comes from, and what is stored of each split."""

from typing import TYPE_CHECKING

import numpy as np

from ckpt_probe.dumps import schema
from ckpt_probe.notebook import sparkline, table, text

if TYPE_CHECKING:
    from ckpt_probe.dumps.reading import Dump

MOST_CLASSES = 200
"""Classifier rows that a line of 120 pixels can show."""


def to_html(dump: "Dump", *, closed: bool) -> str:
    """A small table of a dump's arrays, and a line through the lengths of its classifier's rows; no row is read."""
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
    return table(_told(dump, closed), ["array", "shape", "dtype", "‖row‖ by class"], rows)


def _told(dump: "Dump", closed: bool) -> str:
    step = "" if dump.step is None else f", step {dump.step}"
    source = "" if dump.provenance is None else f"; {dump.provenance.model} on {dump.provenance.data}"
    shut = f"; closed (it had {', '.join(dump.splits)})" if closed else ""
    return f"dump {dump.name}{step}{source}{shut}"

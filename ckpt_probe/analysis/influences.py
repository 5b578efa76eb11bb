"""Influences of rows on metrics: their storage beside cached records, and values of rows whose mean is a metric."""

import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ckpt_probe.metrics.collapse import NearestMean
from ckpt_probe.metrics.decisions import LinearDecision
from ckpt_probe.moments import DetailedRecord
from ckpt_probe.moments.errors import Design, Influences, Sample

ARRAYS = ("indices", "labels", "shares", "documents", "document_rows")
"""Arrays of a `Design`; its numbers are stored as arrays without dimensions."""

NUMBERS = ("samples", "fixed")
VALUE = "value/"


def bytes_of_influences(records: Sequence[DetailedRecord]) -> bytes | None:
    """Return the influences of records as the bytes of an .npz file, or None if no record has any."""
    arrays: dict[str, np.ndarray] = {}
    for number, detailed in enumerate(records):
        if detailed.influences is None:
            continue
        design, values = detailed.influences.design, detailed.influences
        known = {name: getattr(design, name) for name in ARRAYS if getattr(design, name) is not None}
        arrays |= {f"{number}/{name}": values.numpy() for name, values in known.items()}
        arrays |= {f"{number}/{name}": np.array(getattr(design, name)) for name in NUMBERS}
        arrays |= {f"{number}/{VALUE}{name}": values[name].numpy() for name in values}
    if not arrays:
        return None
    file = io.BytesIO()
    np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    return file.getvalue()


def read_influences(stored: bytes, records: Sequence[DetailedRecord]) -> list[DetailedRecord]:
    """Return records with their influences from the bytes of an .npz file.

    Raises:
        KeyError: If an array is missing.
        ValueError: If the file is damaged.
    """
    with np.load(io.BytesIO(stored), allow_pickle=False) as file:
        return [_with_influences(detailed, file, f"{number}/") for number, detailed in enumerate(records)]


def _with_influences(detailed: DetailedRecord, file: np.lib.npyio.NpzFile, prefix: str) -> DetailedRecord:
    names = [name for name in file.files if name.startswith(prefix)]
    if not names:
        return detailed
    arrays = {name: torch.from_numpy(file[prefix + name]) for name in ARRAYS if prefix + name in names}
    design = Design(**arrays, samples=int(file[f"{prefix}samples"]), fixed=bool(file[f"{prefix}fixed"]))  # pyright: ignore[reportArgumentType]
    start = f"{prefix}{VALUE}"
    values = {name.removeprefix(start): torch.from_numpy(file[name]) for name in names if name.startswith(start)}
    return replace(detailed, influences=Influences(design, values))


def add_values_by_means(sample: Sample, train_means: Tensor) -> None:
    """Add the values of the rows of a sample whose means are the metrics by class means of the training split.

    Args:
        sample: Rows of the subset.
        train_means: Class means of the training split, shape (C, D), NaN for absent classes.
    """
    if not len(sample.labels) or bool(train_means[:, 0].isnan().all()):
        return
    labels, weights = sample.labels.cpu(), sample.head[0]
    nearest = NearestMean(train_means).of(sample.features.cpu())
    sample.row_values["nearest_mean_accuracy_train_means"] = nearest == labels
    if weights is not None:
        bias = None if sample.head[1] is None else sample.head[1].cpu()
        predicted = LinearDecision(weights.cpu(), bias).of(sample.features.cpu())
        sample.row_values["nc4.disagreement_train_means"] = nearest != predicted

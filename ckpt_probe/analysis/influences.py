"""Influences of rows on metrics: their storage beside cached records, and values of rows whose mean is a metric."""

import io
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ckpt_probe.metrics.collapse import NearestMean
from ckpt_probe.metrics.decisions import LinearDecision
from ckpt_probe.moments.errors import Design, Influences, Sample

ARRAYS = ("indices", "labels", "shares", "documents", "document_rows")
"""Arrays of a `Design`; its numbers are stored as arrays without dimensions."""

NUMBERS = ("samples", "fixed")
VALUE = "value/"


def bytes_of_influences(of_records: Sequence[Influences | None]) -> bytes | None:
    """Return the influences of records as the bytes of an .npz file, or None if no record has any."""
    arrays: dict[str, np.ndarray] = {}
    for number, values in enumerate(of_records):
        if values is None:
            continue
        design = values.design
        known = {name: getattr(design, name) for name in ARRAYS if getattr(design, name) is not None}
        arrays |= {f"{number}/{name}": array.numpy() for name, array in known.items()}
        arrays |= {f"{number}/{name}": np.array(getattr(design, name)) for name in NUMBERS}
        arrays |= {f"{number}/{VALUE}{name}": values[name].numpy() for name in values}
    if not arrays:
        return None
    file = io.BytesIO()
    np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    return file.getvalue()


def read_influences(stored: bytes, records: int) -> list[Influences | None]:
    """Return the influences of a number of records from the bytes of an .npz file; None for a record without any.

    Raises:
        KeyError: If an array is missing.
        ValueError: If the file is damaged.
    """
    with np.load(io.BytesIO(stored), allow_pickle=False) as file:
        return [_influences_in(file, f"{number}/") for number in range(records)]


def _influences_in(file: np.lib.npyio.NpzFile, prefix: str) -> Influences | None:
    names = [name for name in file.files if name.startswith(prefix)]
    if not names:
        return None
    arrays = {name: torch.from_numpy(file[prefix + name]) for name in ARRAYS if prefix + name in names}
    design = Design(**arrays, samples=int(file[f"{prefix}samples"]), fixed=bool(file[f"{prefix}fixed"]))  # pyright: ignore[reportArgumentType]
    start = f"{prefix}{VALUE}"
    values = {name.removeprefix(start): torch.from_numpy(file[name]) for name in names if name.startswith(start)}
    return Influences(design, values)


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

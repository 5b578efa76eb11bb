"""Create datasets of a dump with checksums, from arrays of numpy or torch rounded to the stored precision."""

import math
from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np

from ckpt_probe.dumps import schema
from ckpt_probe.errors import DataError

CHUNK_BYTES = 2**20
"""Largest size of a chunk, unless one row is larger."""


def as_stored(features: Any, dtype: str, where: str) -> np.ndarray:
    """Round features to the precision in which they are stored.

    Args:
        features: Numbers of any shape, numpy or torch.
        dtype: One of `FEATURE_DTYPES`.
        where: Beginning of the error message.

    Raises:
        DataError: If a finite number becomes infinite.
    """
    values = to_numpy(features)
    if np.can_cast(values.dtype, dtype):
        return values.astype(dtype, copy=False)
    with np.errstate(over="ignore"):
        stored = values.astype(dtype)
    overflowed = np.isinf(stored) & np.isfinite(values)
    if overflowed.any():
        largest, most = np.abs(values[overflowed]).max(), np.finfo(dtype).max
        wider = schema.FEATURE_DTYPES[schema.FEATURE_DTYPES.index(dtype) + 1]
        raise DataError(
            f"{where}: features as large as {largest:.6g} overflow {dtype}, whose largest number is {most:.6g}; "
            f"store them with `feature_dtype={wider!r}`"
        )
    return stored


def create_array(group: Any, name: str, values: np.ndarray) -> Any:
    """Create a dataset with its values and a checksum."""
    if values.size and values.shape:
        rows = max(1, CHUNK_BYTES // (values.nbytes // len(values)))
        chunks = (min(len(values), rows), *values.shape[1:])
        return group.create_dataset(name, data=values, chunks=chunks, fletcher32=True)
    # A single number or an empty array cannot be chunked: it is stored in the dataset's header, which has a checksum.
    space = h5py.h5s.create_simple(values.shape) if values.shape else h5py.h5s.create(h5py.h5s.SCALAR)
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.COMPACT)
    kind = h5py.h5t.py_create(values.dtype, logical=True)
    dataset = h5py.Dataset(h5py.h5d.create(group.id, name.encode(), kind, space, dcpl=properties))
    dataset[...] = values
    return dataset


def create_texts(group: Any, name: str, texts: Sequence[str]) -> Any:
    """Create a dataset of texts of one length in UTF-8 with a checksum."""
    encoded = [text.encode("utf-8", "replace") for text in texts]
    kind = h5py.string_dtype("utf-8", max([1, *map(len, encoded)]))
    return create_array(group, name, np.array(encoded, dtype=kind))


def create_rows(group: Any, name: str, samples: int | None, shape: tuple[int, ...], dtype: Any) -> Any:
    """Create a dataset of rows with a checksum, to be filled later.

    Args:
        group: Group of the dataset.
        name: Name of the dataset.
        samples: Number of rows; None if it is not known, and the dataset grows.
        shape: Shape of one row.
        dtype: Type of the numbers.
    """
    row_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    rows = max(1, CHUNK_BYTES // max(1, row_bytes))
    return group.create_dataset(
        name,
        shape=(samples or 0, *shape),
        dtype=dtype,
        chunks=None if samples == 0 else (rows if samples is None else min(samples, rows), *shape),
        maxshape=(None, *shape) if samples is None else None,
        fletcher32=samples != 0,
    )


def to_numpy(values: Any) -> np.ndarray:
    """Convert numbers or a tensor to an array on the CPU."""
    # Neither HDF5 nor numpy has bfloat16: such tensors are stored as float32, which is exact.
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
        return values.numpy()
    return np.asarray(values)

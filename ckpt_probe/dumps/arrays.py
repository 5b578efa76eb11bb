"""Create the datasets of a dump with checksums, in a file that survives a full disk, and a hash of everything else."""

import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from ckpt_probe.budget import Budget
from ckpt_probe.dumps import schema
from ckpt_probe.errors import DataError
from ckpt_probe.hdf5 import items

CHUNK_BYTES = 2**20
"""Largest size of a chunk, unless one row is larger."""

UNHASHED = frozenset({"complete", "structure_sha256", "DIMENSION_LIST", "REFERENCE_LIST"})
"""Attributes left out of the hash: those written after it, and references to scales, which ckpt-probe does not read."""

COUNTED = 2**20
"""Bytes of attributes after which they are counted."""


class Sink(io.FileIO):
    """A file for h5py that remembers the first write error and then ignores further writes.

    HDF5 writes late, when a dataset or the file is closed, tries again at the end of the process, and crashes if that
    fails too. So it never sees the error: `DumpWriter` raises it, and abandons the dump.
    """

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of `data`, or nothing after a failure; return its size in both cases."""
        view = memoryview(data).cast("B")
        size = len(view)
        try:
            while self.failure is None and view:
                view = view[super().write(view) or 0 :]
        except OSError as error:
            self.failure = error
        return size

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` from the file, with zeros for bytes that could not be written."""
        view = memoryview(buffer).cast("B")
        count = super().readinto(view) or 0
        if self.failure is not None:
            view[count:] = bytes(len(view) - count)
            return len(view)
        return count

    def flush(self) -> None:
        """Do nothing: the file is unbuffered."""


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


def create_array(group: Any, name: str, values: Any) -> Any:
    """Create a dataset with its values and a checksum."""
    values = to_numpy(values)
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


def create_arrays(group: Any, arrays: Mapping[str, Any]) -> None:
    """Create datasets with their values and checksums; a point in a name follows that of a group within."""
    for name, values in arrays.items():
        inner, _, array = name.rpartition(".")
        create_array(group.require_group(inner) if inner else group, array, values)


def create_rows(group: Any, samples: int | None, arrays: Mapping[str, tuple[int | None, Any] | None]) -> dict[str, Any]:
    """Create datasets with one entry per row, with checksums and a scale of the rows, to be filled later.

    Args:
        group: Group of the datasets.
        samples: Number of rows; None if it is not known, and the datasets grow.
        arrays: Number of columns, None for a single number per row, and type of the numbers, by name; None for an array
            that is not stored.

    Returns:
        The datasets by name, the scale first.
    """
    kinds = {schema.SAMPLE_SCALE: (None, np.int64), **{name: kind for name, kind in arrays.items() if kind is not None}}
    datasets: dict[str, Any] = {}
    for name, (columns, dtype) in kinds.items():
        shape = () if columns is None else (columns,)
        rows = max(1, CHUNK_BYTES // max(1, math.prod(shape) * np.dtype(dtype).itemsize))
        datasets[name] = group.create_dataset(
            name,
            shape=(samples or 0, *shape),
            dtype=dtype,
            chunks=None if samples == 0 else (rows if samples is None else min(samples, rows), *shape),
            maxshape=(None, *shape) if samples is None else None,
            fletcher32=samples != 0,
        )
        if name == schema.SAMPLE_SCALE:
            datasets[name].make_scale(schema.SAMPLE_SCALE)
        else:
            datasets[name].dims[0].attach_scale(datasets[schema.SAMPLE_SCALE])
    return datasets


def write_rows(
    datasets: Mapping[str, Any], rows: slice, arrays: Mapping[str, Any], dtype: str, where: str
) -> np.ndarray:
    """Write rows of each dataset, from arrays by name.

    Args:
        datasets: Datasets by name, with that of the features.
        rows: The rows.
        arrays: Their numbers, numpy or torch.
        dtype: Precision of the features.
        where: Beginning of the error message.

    Returns:
        The features as they are stored, shape (n, D).

    Raises:
        DataError: If a feature is too large for the precision.
    """
    stored = as_stored(arrays[schema.FEATURES], dtype, where)
    for name, dataset in datasets.items():
        dataset[rows] = stored if name == schema.FEATURES else to_numpy(arrays[name])
    return stored


def structure_hash(file: h5py.File, budget: Budget | None = None) -> str:
    """Compute the SHA-256 of names, shapes, dtypes and attributes of every group and dataset of a file.

    The numbers in datasets are left out, because HDF5's checksums cover them.

    Args:
        file: An open file.
        budget: Budget of a file that is read: many attributes may lead to one large text.
    """
    digest, size = hashlib.sha256(), 0
    for name, item in list(items(file, budget)):
        parts = [name, *(f"{key}={_value(item.attrs[key])}" for key in sorted(set(item.attrs) - UNHASHED))]
        size += sum(map(len, parts))
        if budget is not None and size > COUNTED:
            budget.spend(size)
            size = 0
        if isinstance(item, h5py.Dataset):
            parts += [str(item.shape), item.dtype.str]
        digest.update("\0".join(parts).encode(errors="surrogateescape") + b"\1")
    return digest.hexdigest()


def to_numpy(values: Any) -> np.ndarray:
    """Convert numbers or a tensor to an array on the CPU."""
    # Neither HDF5 nor numpy has bfloat16: such tensors are stored as float32, which is exact.
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
        return values.numpy()
    return np.asarray(values)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    # The bytes of an array of objects are only addresses.
    content = repr(array.tolist()) if array.dtype.kind == "O" else array.tobytes().hex()
    return f"{array.dtype.str} {array.shape} {content}"

"""Hash the names, shapes and attributes of a file, which HDF5's checksums do not cover."""

import hashlib
from typing import Any

import h5py
import numpy as np

from ckpt_probe.hdf5 import items

UNHASHED = frozenset({"complete", "structure_sha256", "DIMENSION_LIST", "REFERENCE_LIST"})
"""Attributes left out of the hash: those written after it, and references to scales, which ckpt-probe does not read."""


def structure_hash(file: h5py.File) -> str:
    """Compute the SHA-256 of names, shapes, dtypes and attributes of every group and dataset of a file.

    The numbers in datasets are left out, because HDF5's checksums cover them.
    """
    digest = hashlib.sha256()
    for name, item in items(file):
        parts = [name, *(_attributes(item))]
        if isinstance(item, h5py.Dataset):
            parts += [str(item.shape), item.dtype.str]
        digest.update("\0".join(parts).encode(errors="surrogateescape") + b"\1")
    return digest.hexdigest()


def _attributes(item: Any) -> list[str]:
    return [f"{name}={_value(item.attrs[name])}" for name in sorted(item.attrs) if name not in UNHASHED]


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    # The bytes of an array of objects are only addresses.
    content = repr(array.tolist()) if array.dtype.kind == "O" else array.tobytes().hex()
    return f"{array.dtype.str} {array.shape} {content}"

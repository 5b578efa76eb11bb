"""A hash of what no checksum of HDF5 covers: the names, shapes and attributes of a file."""

import hashlib
from typing import Any

import h5py
import numpy as np

from ckpt_probe.hdf5 import items

UNHASHED = frozenset({"complete", "structure_sha256", "DIMENSION_LIST", "REFERENCE_LIST"})
"""Attributes left out of the hash: what is written after it, and references to scales, which nothing here reads."""


def structure_hash(file: h5py.File) -> str:
    """SHA-256 over every group, dataset and attribute of a file: names, shapes, dtypes and attributes' values.

    The numbers in datasets are not in it: HDF5's checksums cover them.
    """
    found = hashlib.sha256()
    for name, item in items(file):
        told = [name, *(_attributes(item))]
        if isinstance(item, h5py.Dataset):
            told += [str(item.shape), item.dtype.str]
        found.update("\0".join(told).encode(errors="surrogateescape") + b"\1")
    return found.hexdigest()


def _attributes(item: Any) -> list[str]:
    return [f"{name}={_value(item.attrs[name])}" for name in sorted(item.attrs) if name not in UNHASHED]


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    # An array of objects has no bytes of its own, only addresses.
    content = repr(array.tolist()) if array.dtype.kind == "O" else array.tobytes().hex()
    return f"{array.dtype.str} {array.shape} {content}"

"""Whether a file is sound: a hash of what no checksum of HDF5 covers, nothing outside the file, no false size."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5o  # pyright: ignore[reportAttributeAccessIssue]

from ckpt_probe.errors import DataError

UNHASHED = frozenset({"complete", "structure_sha256", "DIMENSION_LIST", "REFERENCE_LIST"})
"""Attributes left out of the hash: what is written after it, and references to scales, which nothing here reads."""

FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32", 4: "szip", 5: "nbit", 6: "scaleoffset", 32000: "lzf"}
"""HDF5's own filters and h5py's, by number."""

COMPRESSING = frozenset({1, 4, 5, 6, 32000})
LARGEST_RATIO = 1000
UNCHECKED_BYTES = 2**30
"""Up to here a dataset may be compressed as far as it likes."""

DEEPEST = 8
"""Groups within groups that are followed."""


def structure_hash(file: h5py.File) -> str:
    """SHA-256 over every group, dataset and attribute of a file: names, shapes, dtypes and attributes' values.

    The numbers in datasets are not in it: HDF5's checksums cover them.
    """
    found = hashlib.sha256()
    for name, item in _items(file):
        told = [name, *(_attributes(item))]
        if isinstance(item, h5py.Dataset):
            told += [str(item.shape), item.dtype.str]
        found.update("\0".join(told).encode(errors="surrogateescape") + b"\1")
    return found.hexdigest()


def require_own(path: Path, file: h5py.File) -> None:
    """Raise DataError, naming the place, where a file leads outside itself or claims what it cannot hold.

    That is external and user-defined links, external raw storage, virtual datasets, unknown filters, types that are no
    numbers, shapes beyond what is stored, and compression by more than 1,000 times over 1 GiB. Nothing is read for it.
    """
    for name, item in _items(file, path):
        if isinstance(item, h5py.Dataset):
            _require_plain(f"{path}: {name.strip('/')}", item)


def _items(file: h5py.File, path: Path | None = None) -> Iterator[tuple[str, Any]]:
    """Every object of a file by its name, groups before what is in them, each once; links to nowhere left out."""
    waiting: list[tuple[str, Any, int]] = [("/", file, 0)]
    seen = set()
    while waiting:
        name, item, depth = waiting.pop()
        address = h5o.get_info(item.id).addr
        if address in seen:
            continue
        seen.add(address)
        yield name, item
        if not isinstance(item, h5py.Group):
            continue
        if depth == DEEPEST:
            raise DataError(f"{path or file.filename}: {name}: groups nested more than {DEEPEST} deep")
        for key in sorted(item, reverse=True):
            inner = f"{name.rstrip('/')}/{key}"
            link = item.get(key, getlink=True)
            if not isinstance(link, h5py.HardLink | h5py.SoftLink):
                raise DataError(
                    f"{path or file.filename}: {inner.strip('/')}: {_described(link)}, which is not followed"
                )
            found = item.get(key)
            if isinstance(found, h5py.Group | h5py.Dataset):
                waiting.append((inner, found, depth + 1))


def _described(link: Any) -> str:
    if isinstance(link, h5py.ExternalLink):
        return f"a link to another file ({link.filename!r})"
    return "a user-defined link"


def _require_plain(where: str, dataset: h5py.Dataset) -> None:
    if dataset.is_virtual:
        raise DataError(f"{where}: a virtual dataset, stored in other files; copy its numbers into this file")
    if dataset.external:
        raise DataError(
            f"{where}: stored in another file ({dataset.external[0][0]!r}); copy its numbers into this file"
        )
    if dataset.dtype.kind not in "biuf":
        raise DataError(f"{where}: contains {dataset.dtype}, expected numbers")
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(number)[0] for number in range(properties.get_nfilters())]
    unknown = [number for number in filters if number not in FILTERS]
    if unknown:
        raise DataError(f"{where}: stored with the unknown filter {unknown[0]}; write it with gzip, lzf or no filter")
    claimed, stored = dataset.nbytes, dataset.id.get_storage_size()
    if not COMPRESSING & set(filters) and claimed > stored:
        raise DataError(f"{where}: claims {claimed:,} bytes, but only {stored:,} were ever written")
    if claimed > UNCHECKED_BYTES and claimed > LARGEST_RATIO * stored:
        raise DataError(
            f"{where}: claims {claimed:,} bytes from only {stored:,} stored; write it with less compression"
        )


def _attributes(item: Any) -> list[str]:
    return [f"{name}={_value(item.attrs[name])}" for name in sorted(item.attrs) if name not in UNHASHED]


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    # An array of objects has no bytes of its own, only addresses.
    content = repr(array.tolist()) if array.dtype.kind == "O" else array.tobytes().hex()
    return f"{array.dtype.str} {array.shape} {content}"

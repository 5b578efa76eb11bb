"""Protect a dump: a hash of its structure, and a file object that survives a full disk."""

import hashlib
import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ckpt_probe.budget import Budget
from ckpt_probe.errors import DataError
from ckpt_probe.hdf5 import items

UNHASHED = frozenset({"complete", "structure_sha256", "DIMENSION_LIST", "REFERENCE_LIST"})
"""Attributes left out of the hash: those written after it, and references to scales, which ckpt-probe does not read."""

COUNTED = 2**20
"""Bytes of attributes after which they are counted."""


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


class Sink(io.RawIOBase):
    """A file object for h5py that remembers the first write error and then ignores further writes.

    HDF5 writes late, when a dataset or the file is closed, tries again at the end of the process, and crashes if that
    fails too. So it never sees the error: `require_written` raises it, and the dump is abandoned.
    """

    def __init__(self, path: Path) -> None:
        # Unbuffered: a buffer would report errors late in the same way.
        self._file = path.open("w+b", buffering=0)
        self._failure: OSError | None = None

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()

    def require_written(self, path: Path) -> None:
        """Raise DataError naming `path` if a write failed."""
        if self._failure is not None:
            raise DataError(f"{path}: cannot be written: {self._failure.strerror}") from self._failure

    def write(self, data: Any) -> int:
        """Write all of `data`, or nothing after a failure; return its size in both cases."""
        view = memoryview(data).cast("B")
        size = len(view)
        try:
            while self._failure is None and view:
                view = view[self._file.write(view) or 0 :]
        except OSError as error:
            self._failure = error
        return size

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` from the file, with zeros for bytes that could not be written."""
        view = memoryview(buffer).cast("B")
        count = self._file.readinto(view) or 0
        if self._failure is not None:
            view[count:] = bytes(len(view) - count)
            return len(view)
        return count

    def seek(self, offset: int, whence: int = 0) -> int:
        """Set the position in the file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the position in the file."""
        return self._file.tell()

    def truncate(self, size: int | None = None) -> int:
        """Set the size of the file."""
        return self._file.truncate(size)

    def flush(self) -> None:
        """Do nothing: the file is unbuffered."""


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    # The bytes of an array of objects are only addresses.
    content = repr(array.tolist()) if array.dtype.kind == "O" else array.tobytes().hex()
    return f"{array.dtype.str} {array.shape} {content}"

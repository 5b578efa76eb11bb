"""The file beneath a dump that is being written: one that survives a full disk."""

import io
from pathlib import Path
from typing import Any

from ckpt_probe.errors import DataError


class Sink(io.RawIOBase):
    """A file for h5py to write into; what the disk does not take is remembered, and everything after it goes nowhere.

    HDF5 writes late, when a dataset or the file is closed, tries again at the end of the process, and crashes where
    that fails too. So it is never told: `require_written` says what went wrong, and the dump is given up.
    """

    def __init__(self, path: Path) -> None:
        # Unbuffered: a buffer of Python's would fail late in the same way.
        self._file = path.open("w+b", buffering=0)
        self._failure: OSError | None = None

    def close(self) -> None:
        """As for any file."""
        self._file.close()
        super().close()

    def require_written(self, path: Path) -> None:
        """Raise DataError naming `path` where something could not be written."""
        if self._failure is not None:
            raise DataError(f"{path}: cannot be written: {self._failure.strerror}") from self._failure

    def write(self, data: Any) -> int:
        """Write all of `data`; after a failure nothing is written, and the size is returned all the same."""
        view = memoryview(data).cast("B")
        size = len(view)
        try:
            while self._failure is None and view:
                view = view[self._file.write(view) or 0 :]
        except OSError as error:
            self._failure = error
        return size

    def readinto(self, buffer: Any) -> int:
        """As for any file, with zeros in place of what the disk did not take."""
        view = memoryview(buffer).cast("B")
        count = self._file.readinto(view) or 0
        if self._failure is not None:
            view[count:] = bytes(len(view) - count)
            return len(view)
        return count

    def seek(self, offset: int, whence: int = 0) -> int:
        """As for any file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As for any file."""
        return self._file.tell()

    def truncate(self, size: int | None = None) -> int:
        """As for any file."""
        return self._file.truncate(size)

    def flush(self) -> None:
        """Nothing to do: the file is unbuffered."""

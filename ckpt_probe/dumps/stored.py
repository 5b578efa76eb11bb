"""An array of a dump as its reader slices it: rows come from the disk, or one line says that they cannot."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ckpt_probe.errors import DataError


class StoredArray:
    """An array on disk: `array[:100]` reads 100 rows. `dataset` is h5py's own, for what else it can do.

    Raises DataError, naming file and array, where the bytes cannot be read; for an index of no meaning what h5py does.
    """

    def __init__(self, path: Path, dataset: h5py.Dataset) -> None:
        self.dataset = dataset
        self._path = path

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, such as (N, D)."""
        return self.dataset.shape

    @property
    def ndim(self) -> int:
        """How many dimensions it has."""
        return self.dataset.ndim

    @property
    def dtype(self) -> np.dtype:
        """The kind of its numbers, as they are stored."""
        return self.dataset.dtype

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        try:
            return self.dataset[index]
        except (OSError, RuntimeError, MemoryError) as error:
            told = (str(error).splitlines() or [type(error).__name__])[0]
            name = str(self.dataset.name).removeprefix("/")
            raise DataError(f"{self._path}: {name}: cannot be read, it may be damaged: {told}") from error

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[()], dtype=dtype)

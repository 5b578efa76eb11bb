"""Wrap an array of a dump, so that damage found while slicing it is reported in one line."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ckpt_probe.errors import DataError


class StoredArray:
    """An array on disk: `array[:100]` reads 100 rows; `dataset` is the underlying h5py dataset.

    Slicing raises DataError, naming file and array, if the bytes cannot be read, and h5py's error for a bad index.
    """

    def __init__(self, path: Path, dataset: h5py.Dataset) -> None:
        self.dataset = dataset
        self._path = path

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, such as (N, D)."""
        return self.dataset.shape

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return self.dataset.ndim

    @property
    def dtype(self) -> np.dtype:
        """Data type as stored."""
        return self.dataset.dtype

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        try:
            return self.dataset[index]
        except (OSError, RuntimeError, MemoryError) as error:
            cause = (str(error).splitlines() or [type(error).__name__])[0]
            name = str(self.dataset.name).removeprefix("/")
            raise DataError(f"{self._path}: {name}: cannot be read, it may be damaged: {cause}") from error

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[()], dtype=dtype)

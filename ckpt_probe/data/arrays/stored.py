"""`h5:FILE`: arrays `inputs` and `labels` in an HDF5 file, at its root or in a group a split, read batch by batch."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ckpt_probe.data.samples import ArraySplit, to_model_dtype
from ckpt_probe.errors import DataError
from ckpt_probe.hdf5 import CLASS_NAMES, groups_with, native, opened, own_reads, read_names, require_own

INPUTS, LABELS = "inputs", "labels"


class StoredSplit:
    """A split whose inputs (N, …) stay on the disk; labels (N,) are held. Inputs are handed out as ArraySplit does."""

    def __init__(self, path: Path, inputs: str, labels: Tensor) -> None:
        self._path = path
        self._inputs = inputs
        self._labels = labels

    @property
    def labels(self) -> Tensor:
        """All labels, (N,) int64."""
        return self._labels

    def __len__(self) -> int:
        return len(self._labels)

    def batch(self, indices: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Inputs (n, …) and labels (n,) of the samples named. Raises DataError where they cannot be read."""
        return to_model_dtype(self._read(indices)), self._labels[indices]

    def held(self) -> ArraySplit:
        """The same split in memory."""
        return ArraySplit(self._read(slice(None)), self._labels)

    def _read(self, indices: Tensor | slice) -> Tensor:
        # Opened for each batch: a file that stays open is shared by no two processes, and closed by nobody.
        with opened(self._path) as file, own_reads(self._path, self._inputs):
            dataset: Any = file[self._inputs]
            if isinstance(indices, slice):
                return torch.from_numpy(native(dataset[indices]))
            # HDF5 reads rows in order, each once.
            rows, back = np.unique(indices.numpy(), return_inverse=True)
            return torch.from_numpy(native(dataset[rows])[back])


def read_h5(path: Path) -> tuple[dict[str, StoredSplit], tuple[str, ...] | None]:
    """Splits of a file, and names of its classes where it has a dataset `class_names`.

    Each group with `inputs` and `labels` is a split; where they are at the root, there is one, named as the file is.
    Raises DataError where there are none, or they do not fit each other, or the file leads outside itself.
    """
    with opened(path) as file, own_reads(path):
        require_own(path, file)
        names = file.get(CLASS_NAMES)
        groups = groups_with(file, INPUTS, LABELS)
        if not groups:
            raise DataError(f"{path}: no arrays {INPUTS} and {LABELS}, at its root or in a group for each split")
        splits = {name or path.stem: _split(path, group) for name, group in groups.items()}
        return splits, None if names is None else read_names(path, names)


def _split(path: Path, group: Any) -> StoredSplit:
    inputs, labels = group[INPUTS], group[LABELS]
    where = f"{path}: {group.name.strip('/')}".rstrip(": ")
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(f"{where}: {LABELS} must be integers (N,), found {labels.shape} of {labels.dtype}")
    if inputs.ndim < 2 or inputs.shape[:1] != labels.shape:
        raise DataError(f"{where}: {INPUTS} have shape {inputs.shape}; expected (N, …) for {LABELS} {labels.shape}")
    return StoredSplit(path, inputs.name, torch.from_numpy(native(labels[()]).astype(np.int64)))
